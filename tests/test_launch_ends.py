"""How launchers end where streams, folders, users, variables or tools are not as usual: one line, and no hang."""
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import launches
import pytest

LINES = {'local': ['--processes=1', '--', 'echo', 'größe'], 'slurm': ['--detach', '--', 'program', 'größe'],
         'tpu': ['v5e-16', '--name=n', '--', 'program', 'größe'],
         'gke': ['v5e-16', '--name=n', '--bucket=bucket', '--detach', '--', 'program', 'größe']}
ASCII = {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0', 'LANG': 'C'}
NOBODY = ['setpriv', '--reuid=61234', '--regid=61234', '--clear-groups', '--']  # a user that no file knows


class Place:
    def __init__(self, folder):
        self.folder, self.environ = folder, launches.project(folder)
        self.project = folder / 'project'

    def run(self, name, *words, redirect='', before=(), python=sys.executable, **environ):
        """Returns (exit code, standard output, standard error) of a launcher, started by a shell with a redirection."""
        environ = {key: value for key, value in {**self.environ, **environ}.items() if value is not None}
        done = subprocess.run([*before, '/bin/bash', '-c', f'"$@" {redirect}', 'bash', python, '-S',
                               str(self.project / 'launch' / f'{name}.py'), *words], env=environ, cwd=self.project,
                              capture_output=True, timeout=60, check=False)
        return done.returncode, done.stdout.decode(errors='surrogateescape'), done.stderr.decode()


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def is_line(err, *parts):
    """Whether standard error is one line of a launcher, after the cost perhaps, that holds these parts."""
    lines = [line for line in err.splitlines() if 'dollars an hour' not in line]
    return (len(lines) == 1 and re.match(r'(local|slurm|tpu|gke|command)\.py: ', lines[0])
            and all(part in lines[0] for part in parts))


@pytest.mark.parametrize('name', LINES)
def test_a_dry_run_that_cannot_be_printed_is_one_line(place, name):
    for redirect, reason in (('>/dev/full', 'No space left on device'), ('>&-', 'Bad file descriptor')):
        for words in (['--dry-run', *LINES[name]], ['--help']):
            code, out, err = place.run(name, *words, redirect=redirect)
            assert (code, out) == (2, '') and is_line(err, f'standard output cannot be written ({reason}); send'), err
    code, out, err = place.run(name, '--dry-run', *LINES[name], redirect='| true; exit ${PIPESTATUS[0]}')
    assert code in (0, 141) and out == '' and 'Traceback' not in err
    for redirect in ('2>/dev/full', '2>&-', '2>&- <&-'):
        code, out, err = place.run(name, '--dry-run', *LINES[name], redirect=redirect)
        assert code == 0 and ('größe' in out or name == 'gke') and err == ''


@pytest.mark.parametrize('name', LINES)
@pytest.mark.parametrize('environ', [{'PYTHONIOENCODING': 'ascii'}, {'PYTHONIOENCODING': 'latin-1'}, ASCII])
def test_text_of_any_alphabet_arrives_under_any_encoding(place, name, environ):
    _, expected, _ = place.run(name, '--dry-run', *LINES[name])
    code, out, err = place.run(name, '--dry-run', *LINES[name], **environ)
    changing = r'\d{8}-\d{6}-\d+|127.0.0.1:\d+'
    assert code == 0 and re.sub(changing, '', out) == re.sub(changing, '', expected), err


@pytest.mark.parametrize('redirect, told', [
    ('>/dev/full', True), ('>&-', True), ('>&- 2>&-', False), ('<&- >&- 2>&-', False), ('| true', False)])
def test_a_command_goes_on_where_its_output_cannot_be_shown(place, redirect, told):
    text = 'for i in {1..20000}; do echo "line $i"; done'
    code, _, err = place.run('local', '--processes=2', '--logs=logs', '--', 'bash', '-c', text,
                               redirect=f'{redirect}; exit ${{PIPESTATUS[0]}}')
    assert code == 0 and 'Traceback' not in err and ('the command goes on' in err) == told
    for i in range(2):
        assert (place.project / 'logs' / f'{i}.log').read_text().splitlines()[-1] == 'line 20000'


def test_a_command_goes_on_where_its_log_is_full(place):
    (place.project / 'logs').mkdir()
    (place.project / 'logs' / '1.log').symlink_to('/dev/full')
    text = 'for i in {1..20000}; do echo "line $i"; done'
    code, out, err = place.run('local', '--processes=2', '--logs=logs', '--', 'bash', '-c', text)
    assert code == 0 and out.endswith('[0] line 20000\n')
    assert err.count('1.log cannot be written (No space left on device); the command goes on') == 1


def test_logs_are_added_to(place):
    for _ in range(2):
        assert place.run('local', '--processes=1', '--logs=logs', '--', 'echo', 'x')[0] == 0
    assert (place.project / 'logs' / '0.log').read_text() == 'x\nx\n'


@pytest.mark.parametrize('words, parts', [
    (['--processes=1', '--logs=folder'], ['Is a directory', '0.log']),
    (['--processes=1', '--logs=' + 'x' * 300], ['a name of 300 bytes, and file systems take 255; try --logs=DIR']),
    (['--processes=1', '--logs=launch/local.py'], ['cannot be made', 'try --logs=DIR']),
    (['--processes=999999999'], ['more open files than the', 'ulimit -n']),
    (['--processes=' + '9' * 5000], ['is not a whole number of at least 1']),
    (['--processes=1', '--port=99999'], ['--port=99999 is no port; try one from']),
    (['--processes=1', '--grace=' + '9' * 400], ['is not a number above 0']),
    (['--processes=1', 'a\nb'], ['unrecognized arguments: a\\nb']),
])
def test_what_cannot_be_is_one_line(place, words, parts):
    (place.project / 'folder' / '0.log').mkdir(parents=True)
    code, out, err = place.run('local', *words, '--', 'echo', 'x')
    assert (code, out) == (2, '') and is_line(err, *parts) and len(err) < 1200, err


def test_a_device_of_minus_one_is_none(place):
    code, _, err = place.run('local', '--', 'true', JAX_PLATFORMS=None, CUDA_VISIBLE_DEVICES='-1')
    assert code == 2 and is_line(err, 'this machine has no GPU to count; try --processes=2.')


@pytest.mark.skipif(os.geteuid(), reason='only root can become another user')
@pytest.mark.skipif(not os.path.exists('/usr/bin/python3'), reason='no Python is there for every user')
@pytest.mark.parametrize('name', LINES)
def test_a_user_without_name_home_and_rights(place, name):
    """A dry run goes as usual; what must write or read says where it cannot."""
    for path in [place.folder, *place.folder.parents][:-2]:
        path.chmod(path.stat().st_mode | 0o555)
    usual = {'before': NOBODY, 'python': '/usr/bin/python3'}
    mine = {**usual, 'GIT_CONFIG_COUNT': '1', 'GIT_CONFIG_KEY_0': 'safe.directory', 'GIT_CONFIG_VALUE_0': '*'}
    for home in (None, '/nonexistent', '/'):
        code, out, err = place.run(name, '--dry-run', *LINES[name], **mine, HOME=home)
        assert code == 0 and out and 'Traceback' not in err, err
    if name in ('local', 'slurm'):
        code, out, err = place.run(name, *LINES[name], **mine)
        assert (code, out) == (2, '') and is_line(err, 'cannot be made (Permission denied); try --logs=DIR'), err
    else:
        code, out, err = place.run(name, *LINES[name], **usual)
        assert (code, out) == (2, '') and is_line(err, 'dubious ownership', 'run git config --global --add safe.'), err
        (place.project / 'secret.py').write_text('')
        (place.project / 'secret.py').chmod(0)
        code, out, err = place.run(name, *LINES[name], **mine)
        assert (code, out) == (2, '') and is_line(err, 'secret.py cannot be read, and would not be copied; '), err


@pytest.mark.parametrize('name', ['local', 'slurm'])
def test_a_folder_that_is_gone_is_one_line(place, name):
    (place.folder / 'gone').mkdir()
    there = f'cd {place.folder}/gone; rmdir "$PWD"; exec "$@"'
    code, out, err = place.run(name, *LINES[name], before=['bash', '-c', there, 'bash'])
    assert (code, out) == (2, '') and 'Traceback' not in err
    assert is_line(err.splitlines()[-1], 'No such file or directory: run this in a folder that exists'), err


def test_no_place_for_temporary_files_is_one_line(place):
    (place.folder / 'bin' / 'kubectl').write_text('#!/bin/bash\n')
    code, out, err = place.run('gke', *LINES['gke'], before=['bash', '-c', 'ulimit -f 0; exec "$@"', 'bash'])
    assert (code, out) == (2, '') and is_line(err.splitlines()[-1], 'No usable temporary directory'), err


@pytest.mark.parametrize('name, tool, remedy', [
    ('slurm', 'sbatch', 'run this where Slurm is installed'), ('tpu', 'gcloud', 'install it from'),
    ('tpu', 'git', 'install it'), ('gke', 'kubectl', 'gcloud components install kubectl'),
    ('gke', 'gcloud', 'install it from'), ('gke', 'git', 'install it')])
def test_a_missing_tool_is_one_line(place, name, tool, remedy):
    tools = place.folder / 'tools'
    tools.mkdir()
    for path in ('bash', 'git', 'tar', 'gzip', 'env'):
        (tools / path).symlink_to(shutil.which(path))
    for path in (place.folder / 'bin').iterdir():
        (tools / path.name).symlink_to(path)
    (tools / tool).unlink()
    code, out, err = place.run(name, *LINES[name], PATH=str(tools))
    lines = [line for line in err.splitlines() if 'copying the code' not in line]
    assert (code, out) == (2, '') and is_line('\n'.join(lines), f"no command '{tool}' on PATH; ", remedy), err


def test_an_answer_that_is_no_json_is_one_line(place):
    (place.folder / 'bin' / 'kubectl').write_text('#!/bin/bash\nprintf "<html>\\xff"\n')
    code, out, err = place.run('gke', *LINES['gke'])
    assert (code, out) == (2, '') and is_line(err, 'kubectl answers what is no JSON (<html>'), err


@pytest.mark.parametrize('delay', [0.0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize('name', [*LINES, 'command'])
def test_an_interrupt_in_the_first_second_is_one_line(place, name, delay):
    """Before the first module is imported, the interpreter itself tells of an interrupt: the test waits until then."""
    process = subprocess.Popen([sys.executable, '-S', '-v', str(place.project / 'launch' / f'{name}.py'),
                                *LINES.get(name, [])], env={**place.environ, 'COMMAND': 'program'}, cwd=place.project,
                               text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in process.stderr:
        if "import 'interrupt'" in line:
            break
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert 'Traceback' not in err and process.returncode in (0, 1, 2, 130, -signal.SIGINT), err
    assert delay or (process.returncode == -signal.SIGINT and f'{name}.py: interrupted\n' in err), err
