"""What a run's directory has lost: the remedy that a message names works, and what is made again is named."""
import dataclasses
import json
import shutil

import jax
import pytest
from sweeps import TEXT
from test_run_directory import EXPERIMENT, TINY, go

from lm import config, data
from lm.config import checksums
from lm.train import runs

LEARNED = dataclasses.replace(
    TINY, data=dataclasses.replace(TINY.data, train=TEXT, tokenizer=data.Chars()),
    model=dataclasses.replace(TINY.model, vocab=len(set().union(*(doc.text for doc in TEXT.documents())))))


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def trained(tmp_path_factory, cache):
    directory = tmp_path_factory.mktemp('trained') / 'run'
    go(directory, cache, LEARNED)
    return directory


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / 'run')


def load(run):
    return runs.load(run, devices=jax.devices()[:1])


DAMAGES = {'is missing': lambda tokenizer: shutil.rmtree(tokenizer),
           'has 0 bytes and should have': lambda tokenizer: (tokenizer / 'chars.json').write_text(''),
           'is damaged': lambda tokenizer: (tokenizer / checksums.SEAL).write_text('{"chars.json": 1}')}


@pytest.mark.parametrize('unfinished', [False, True])
@pytest.mark.parametrize('fault', DAMAGES)
def test_the_command_of_a_run_makes_its_tokenizer_again_and_names_it(run, cache, capsys, fault, unfinished):
    characters = (run / 'tokenizer' / 'chars.json').read_text()
    DAMAGES[fault](run / 'tokenizer')
    with pytest.raises(config.Error, match=f'{run}/tokenizer/.*json {fault}.*run the command of the run again'):
        load(run)
    if unfinished:
        shutil.rmtree(run / 'checkpoints' / '4')
    go(run, cache, LEARNED)
    [line] = [line for line in capsys.readouterr().err.splitlines() if 'made again' in line]
    assert line.startswith(f'lm: {run}/tokenizer/') and fault in line and line.endswith('; it is made again.')
    assert (run / 'tokenizer' / 'chars.json').read_text() == characters and load(run).step == 4


def test_a_tokenizer_that_is_whole_is_neither_named_nor_written(run, cache, capsys):
    (run / 'tokenizer' / 'chars.json').chmod(0o444)
    before = (run / 'tokenizer' / 'chars.json').stat()
    go(run, cache, LEARNED)
    shutil.rmtree(run / 'checkpoints' / '4')
    go(run, cache, LEARNED)
    assert (run / 'tokenizer' / 'chars.json').stat().st_ino == before.st_ino
    assert 'made again' not in capsys.readouterr().err


def test_other_text_leaves_the_tokenizer_of_a_run_alone(run, cache):
    shutil.rmtree(run / 'checkpoints' / '4')
    characters = (run / 'tokenizer' / 'chars.json').read_text()
    other = config.override(LEARNED, {'data.train.length': 399})
    about = json.loads((run / 'config.json').read_text())
    del about['crc32']
    (run / 'config.json').write_text(json.dumps({**about, 'config': config.dump(other)}))
    with pytest.raises(config.Error, match='the checkpoint was trained on other data: source 0 .synthetic. was '):
        go(run, cache, other)
    assert (run / 'tokenizer' / 'chars.json').read_text() == characters


def test_a_damaged_config_json_is_restored_as_its_message_says(run, cache, tmp_path):
    content = (run / 'config.json').read_bytes()
    (run / 'config.json').write_bytes(content[:300])
    for use in (load, lambda run: go(run, cache, LEARNED)):
        with pytest.raises(config.Error) as error:
            use(run)
        assert str(error.value).startswith(f'{run}/config.json is damaged (no JSON at line ')
        assert str(error.value).endswith('; restore it from a copy, or begin the command of the run in a new --workdir '
                                         'and copy config.json from there.')
        assert str(error.value).count('config.json') == 2
    runs.Run(tmp_path / 'new', config.Experiment(LEARNED, {}, EXPERIMENT.file)).close()
    shutil.copy(tmp_path / 'new' / 'config.json', run)
    go(run, cache, LEARNED)
    assert load(run).step == 4


def test_checkpoints_that_are_gone_are_no_reason_to_wait(run):
    shutil.rmtree(run / 'checkpoints')
    with pytest.raises(config.Error, match='run holds no checkpoint; run its command again, or wait where it runs.$'):
        load(run)
