"""Patterns of files: those of the standard library, without its silence about links and directories."""
import glob
import os
import random

import pytest

from lm import config, data
from lm.data import globs


def made(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def texts(*patterns):
    return [document.text for document in data.Files(tuple(map(str, patterns))).documents()]


PATTERNS = ('*', '**', '**/*', 'a/*', '*/b*', '**/a/**', '**/a/**/*b', '.h/*', '.*/a', '[ab]/?', 'a', './a/../a/b',
            'none/*', 'a/*/*/*', '**/[!a]*', 'a/', 'b//a')


@pytest.mark.parametrize('pattern', PATTERNS)
def test_matches_are_those_of_the_standard_library(pattern, tmp_path, monkeypatch):
    dice = random.Random(0)
    names = {'/'.join(dice.choices(['a', 'b', 'ab', '.h', 'B'], k=dice.randrange(2, 5))) + '.txt' for _ in range(40)}
    made(tmp_path, *names)
    monkeypatch.chdir(tmp_path)
    for form in pattern, f'{glob.escape(str(tmp_path))}/{pattern}':
        expected = {os.path.normpath(path) for path in glob.glob(form, recursive=True) if os.path.isfile(path)}
        assert {os.path.normpath(path) for path in globs.expand(form) if os.path.isfile(path)} == expected


def test_a_directory_that_links_to_itself_is_read_once(tmp_path):
    """Two such links give 2^40 paths to whoever follows them as often as the system allows."""
    made(tmp_path, 'web/z.txt', 'web/in/b.txt')
    for name in 'web/again', 'web/more', 'web/in/up':
        (tmp_path / name).symlink_to(tmp_path / 'web')
    assert texts(tmp_path / 'web/**/*.txt') == ['web/in/b.txt', 'web/z.txt']
    assert sorted(texts(tmp_path / 'web/*/*.txt')) == ['web/in/b.txt', 'web/z.txt']


def test_a_file_that_several_links_lead_to_is_read_once_under_its_shortest_path(tmp_path):
    made(tmp_path, 'web/b.txt')
    (tmp_path / 'web/a.txt').symlink_to('b.txt')
    os.link(tmp_path / 'web/b.txt', tmp_path / 'web/c.txt')
    (tmp_path / 'other').symlink_to('web')
    assert texts(tmp_path / 'web/*.txt', tmp_path / 'other/*.txt', tmp_path / 'web/b.txt') == ['web/b.txt']


def test_what_is_no_file_is_refused_by_name(tmp_path):
    made(tmp_path, 'web/a.txt')
    (tmp_path / 'web/b.txt').symlink_to('nowhere')
    with pytest.raises(config.Error, match=r'^cannot read .*/web/b\.txt: No such file .*restore what it leads to'):
        texts(tmp_path / 'web/*.txt')
    (tmp_path / 'web/c.txt').symlink_to('c.txt')
    with pytest.raises(config.Error, match=r'web/c\.txt: Too many levels'):
        texts(tmp_path / 'web/c.txt')
    os.mkfifo(tmp_path / 'web/d.txt')
    with pytest.raises(config.Error, match=r'web/d\.txt is neither a file nor a directory'):
        texts(tmp_path / 'web/[ad].txt')


@pytest.mark.parametrize('name', ['n' * 300, 'n' * 300 + '/*.txt', 'deep/' + 'n' * 300, '\udcff', 'a/b' * 2000])
def test_a_path_that_cannot_be_is_one_line(name, tmp_path):
    with pytest.raises(config.Error, match='^no file matches ') as error:
        texts(tmp_path / name)
    assert '\n' not in str(error.value)


def test_a_directory_that_may_not_be_listed_is_refused_by_name(tmp_path, monkeypatch):
    made(tmp_path, 'web/a.txt', 'web/closed/b.txt')
    listdir = os.listdir

    def closed(path):
        if str(path).endswith('closed'):
            raise PermissionError(13, 'Permission denied', path)
        return listdir(path)

    monkeypatch.setattr(os, 'listdir', closed)
    for pattern in 'web/**/*.txt', 'web/*/*.txt':
        with pytest.raises(config.Error, match='cannot list the directory .*web/closed: Permission denied'):
            texts(tmp_path / pattern)
    assert texts(tmp_path / 'web/*.txt') == ['web/a.txt']


def test_a_name_that_is_not_utf8_is_read_and_reported(tmp_path):
    from lm.data import cache
    for name, content in (b'a\xff.txt', b'text'), (b'b\xff.txt', b'\xff'):
        with open(os.fsencode(tmp_path) + b'/' + name, 'wb') as file:
            file.write(content)
    built = cache.build(data.Files(str(tmp_path / '*.txt')), data.Bytes().fit((), '.'), tmp_path)
    assert built.report['documents'] == 1 and built.report['rejects']['not valid UTF-8']['count'] == 1
