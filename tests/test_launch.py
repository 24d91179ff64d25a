import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]

# An interpreter whose `-m venv` makes a folder with itself inside and whose `-m pip` writes down what it is asked for.
PYTHON = r'''#!/bin/bash
here=$(cd "$(dirname "$0")" && pwd)
case "$*" in
    *version_info\ \<*) echo "${FAKE_VERSION:-3.12.1}"; [[ ${FAKE_VERSION:-3.12.1} != 3.[0-9].* ]] ;;
    *ensurepip*) [[ -z ${FAKE_NO_VENV:-} ]] ;;
    *virtualenv*) exit 1 ;;
    *%d.%d*) echo 3.12 ;;
    '-m venv'*) echo venv >>"$FAKE_LOG"; mkdir -p "$3/bin"; sleep "${FAKE_VENV_SLEEP:-0}"
        cp "$0" "$3/bin/python"; : >"$3/pyvenv.cfg" ;;
    '-m pip'*)
        echo "pip ${*: -1}" >>"$FAKE_LOG"
        sleep "${FAKE_SLEEP:-0}"
        [[ -z ${FAKE_FAIL:-} ]] || { echo 'Collecting jax'; echo 'ERROR: no network here'; exit 1; }
        printf '#!/bin/bash\necho "$PWD $*"\n' >"$here/show"
        chmod +x "$here/show" ;;
    *) echo "unexpected: $*" >>"$FAKE_LOG"; exit 99 ;;
esac
'''


class Machine:
    """A copy of the launcher beside a setup.py, on a PATH whose only Pythons are those written with `python`."""

    def __init__(self, folder):
        self.root, self.bin, self.log = folder / 'project', folder / 'bin', folder / 'log'
        (self.root / 'launch').mkdir(parents=True)
        self.bin.mkdir()
        shutil.copy(ROOT / 'launch' / 'local.sh', self.root / 'launch')
        (self.root / 'setup.py').write_text('one')
        for tool in ('bash', 'cat', 'chmod', 'cp', 'dirname', 'flock', 'grep', 'head', 'mkdir', 'mv', 'realpath', 'rm',
                     'sed', 'sleep', 'tail', 'tee'):
            (self.bin / tool).symlink_to(shutil.which(tool))

    def python(self, name, text=PYTHON):
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def start(self, *command, cwd=None, **environment):
        environment = {'PATH': str(self.bin), 'FAKE_LOG': str(self.log)} | environment
        return subprocess.Popen(['bash', str(self.root / 'launch' / 'local.sh'), *command], env=environment, text=True,
                                cwd=cwd or self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                start_new_session=True)

    def run(self, *command, cwd=None, **environment):
        process = self.start(*command, cwd=cwd, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def installs(self):
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path)
    made.python('python3')
    return made


def test_without_a_command_it_shows_how_to_use_it(machine):
    code, out, err = machine.run()
    assert (code, out) == (2, '') and 'launch/local.sh pytest' in err and 'set -e' not in err
    assert machine.installs() == []


def test_the_first_run_installs_and_the_second_does_not(machine, tmp_path):
    code, out, _ = machine.run('show', 'a  b', cwd=tmp_path)
    assert (code, out) == (0, f'{tmp_path} a  b\n')
    assert machine.installs() == ['venv', f'pip {machine.root}[test]']
    assert machine.run('show') == (0, f'{machine.root} \n', '')
    assert len(machine.installs()) == 2


def test_a_changed_setup_installs_again_into_the_same_environment(machine):
    machine.run('show')
    (machine.root / 'setup.py').write_text('two')
    assert machine.run('show')[0] == 0
    assert machine.installs() == ['venv'] + [f'pip {machine.root}[test]'] * 2


def test_another_python_or_place_makes_a_new_environment(machine, tmp_path):
    machine.run('show')
    machine.run('show', FAKE_VERSION='3.13.0')
    assert machine.installs().count('venv') == 2
    machine.root = machine.root.rename(tmp_path / 'moved')
    assert machine.run('show', FAKE_VERSION='3.13.0')[0] == 0
    assert machine.installs().count('venv') == 3


def test_lm_python_chooses_and_lm_venv_places(machine):
    machine.python('mine', PYTHON.replace('${FAKE_VERSION:-3.12.1}', '3.11.9'))
    assert machine.run('show', LM_PYTHON='mine', LM_VENV='.venv311')[0] == 0
    assert (machine.root / '.venv311' / 'bin' / 'show').exists() and not (machine.root / '.venv').exists()
    code, _, err = machine.run('show', LM_PYTHON='no-such-python')
    assert code == 2 and 'LM_PYTHON=no-such-python is not a Python of version 3.11 or newer' in err


def test_a_shim_that_does_not_run_is_passed_over(machine):
    machine.python('python3.13', '#!/bin/bash\necho "python3.13: command not found" >&2; exit 127\n')
    machine.python('python3.12', PYTHON.replace('${FAKE_VERSION:-3.12.1}', '3.12.9'))
    assert machine.run('show')[0] == 0
    assert 'python 3.12.9' in (machine.root / '.venv' / 'installed').read_text()


def test_an_old_python_is_refused(machine):
    code, _, err = machine.run('show', FAKE_VERSION='3.9.2')
    assert code == 2 and 'no Python 3.11 or newer on PATH' in err


def test_a_python_without_venv_names_the_package(machine):
    code, _, err = machine.run('show', FAKE_NO_VENV='1')
    assert code == 2 and 'apt install python3.12-venv' in err


def test_a_failed_installation_says_why_and_is_tried_again(machine):
    code, out, err = machine.run('show', FAKE_FAIL='1')
    assert (code, out) == (2, '') and 'ERROR: no network here' in err and '.venv/install.log' in err
    assert machine.run('show')[0] == 0


def test_an_installation_killed_halfway_starts_over(machine):
    process = machine.start('show', FAKE_SLEEP='30')
    while f'pip {machine.root}[test]' not in machine.installs():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert machine.run('show')[0] == 0
    assert machine.installs().count('venv') == 2


def test_an_environment_killed_before_its_first_file_is_created_again(machine):
    process = machine.start('show', FAKE_VENV_SLEEP='30')
    while machine.installs() != ['venv']:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (machine.root / '.venv' / 'pyvenv.cfg').exists()
    assert machine.run('show')[:2] == (0, f'{machine.root} \n')
    assert machine.installs().count('venv') == 2


def contents(folder):
    """Returns what is in a folder: {path: (where a link leads or None, the bytes of a file)}."""
    return {path: (os.readlink(path) if path.is_symlink() else None, path.is_file() and path.read_bytes())
            for path in folder.rglob('*')}


STRANGER = ' exists and was not created by local.sh; set LM_VENV to another folder, or remove it.'
OTHER = '; set LM_VENV to another folder.'
UNWRITABLE = '; set LM_VENV to a folder that can be written to.'
SCRIPTS = ' has characters that a script cannot name its Python by; set LM_VENV to a folder without.'
REFUSED = [
    ('../precious', ['precious/thesis.tex'], STRANGER), ('../precious', ['precious/.hidden'], STRANGER),
    ('../precious', ['precious/installed', 'precious/thesis.tex'], STRANGER),
    ('../precious', ['precious/pyvenv.cfg', 'precious/bin/python'], STRANGER),
    ('../precious', ['precious/pyvenv.cfg', 'precious/installed', 'precious/bin/python'], STRANGER),
    ('../my thesis', ['my thesis/thesis.tex'], STRANGER), ('launch', [], STRANGER), ('setup.py', [], STRANGER),
    ('../link', ['precious/thesis.tex'], STRANGER), ('../fifo', [], STRANGER), ('/dev/null', [], STRANGER),
    ('.', [], OTHER), ('..', [], OTHER), ('/', [], OTHER), ('../home', [], OTHER), ('../loop', [], UNWRITABLE),
    ('../a:b', [], SCRIPTS), ('../new\n', [], SCRIPTS), ('../$(touch canary) x', [], SCRIPTS), ('../"', [], SCRIPTS),
    ('setup.py/venv', [], UNWRITABLE), ('/proc/venv', [], UNWRITABLE), ('../' + 300 * 'x', [], UNWRITABLE),
]


@pytest.mark.parametrize('name, files, message', REFUSED)
def test_a_folder_that_is_no_environment_of_the_launcher_is_left_alone(machine, name, files, message):
    above = machine.root.parent
    for file in files:
        (above / file).parent.mkdir(parents=True, exist_ok=True)
        (above / file).write_text('dear')
    (above / 'home').mkdir()
    (above / 'link').symlink_to('precious')
    (above / 'loop').symlink_to('loop')
    os.mkfifo(above / 'fifo')
    before = contents(above)
    code, out, err = machine.run('show', LM_VENV=name, HOME=str(above / 'home'))
    assert (code, out) == (2, '') and err.endswith(f'{message}\n') and len(err.splitlines()) == 1, err
    assert before == contents(above) and machine.installs() == []


def test_only_what_installers_put_there_is_removed_from_an_environment(machine, tmp_path):
    (tmp_path / 'thesis.log').write_text('dear')
    assert machine.run('show', LM_VENV='../thesis')[0] == 0
    venv = tmp_path / 'thesis'
    for path in (venv / 'lib' / 'old.py', venv / 'notes' / 'dear.txt', venv / '.hidden'):
        path.parent.mkdir(exist_ok=True)
        path.write_text('dear')
    assert machine.run('show', LM_VENV='../thesis', FAKE_VERSION='3.13.0')[0] == 0
    assert machine.installs().count('venv') == 2 and not (venv / 'lib' / 'old.py').exists()
    assert [path.read_text() for path in (venv / 'notes' / 'dear.txt', venv / '.hidden', tmp_path / 'thesis.log')] == [
        'dear'] * 3
    assert {path.name for path in tmp_path.iterdir()} == {'project', 'bin', 'log', 'thesis', 'thesis.log'}


@pytest.mark.parametrize('name, place', [('../a  b', 'a  b'), ('../ü', 'ü'), ('../dangling', 'target'),
                                         ('../project-2', 'project-2'), ('sub/new/venv', 'project/sub/new/venv')])
def test_an_environment_may_be_anywhere_else(machine, tmp_path, name, place):
    (tmp_path / 'dangling').symlink_to('target')
    assert machine.run('show', LM_VENV=name)[:2] == (0, f'{machine.root} \n')
    assert (tmp_path / place / 'installed').exists()
    assert machine.run('show', LM_VENV=name) == (0, f'{machine.root} \n', '')


def test_an_empty_folder_becomes_the_environment(machine, tmp_path):
    (tmp_path / 'empty').mkdir()
    assert machine.run('show', LM_VENV='../empty')[0] == 0
    assert (tmp_path / 'empty' / 'installed').exists()


def test_an_environment_without_a_marker_is_known_by_its_stamp(machine):
    """Those that earlier versions of the launcher created have no marker."""
    machine.run('show')
    (machine.root / '.venv' / 'created-by-local.sh').unlink()
    old = machine.root / '.venv' / 'lib' / 'old.py'
    old.parent.mkdir()
    old.write_text('')
    assert machine.run('show', FAKE_VERSION='3.13.0')[0] == 0
    assert machine.installs().count('venv') == 2 and not old.exists()


def test_two_first_runs_at_once_install_once(machine):
    processes = [machine.start('show', FAKE_SLEEP='0.3') for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert outputs == [f'{machine.root} \n'] * 3
    assert len(machine.installs()) == 2


@pytest.mark.parametrize('driver, extras', [('580.65.06', 'test,cuda'), ('550.90.07', 'test,cuda12'),
                                            ('broken', 'test')])
def test_an_nvidia_driver_adds_the_extra_it_can_run(machine, driver, extras):
    machine.python('nvidia-smi', f'#!/bin/bash\necho {driver}\n')
    assert machine.run('show')[0] == 0
    assert machine.installs()[-1] == f'pip {machine.root}[{extras}]'
    assert machine.run('show', LM_EXTRAS='none')[0] == 0
    assert machine.installs()[-1] == f'pip {machine.root}[test]'


def test_exit_code_and_signals_reach_the_command(machine):
    machine.run('show')
    assert machine.run('bash', '-c', 'exit 75')[0] == 75
    process = machine.start('bash', '-c', 'trap "echo saved; exit 3" TERM; echo ready; while :; do sleep 0.05; done')
    assert process.stdout.readline() == 'ready\n'
    process.terminate()
    assert process.communicate(timeout=60)[0] == 'saved\n' and process.returncode == 3


@pytest.mark.parametrize('name, value', [
    ('LM_PYTHON', 'true'), ('LM_PYTHON', 'echo'), ('LM_PYTHON', 'exit'), ('LM_PYTHON', 'say'),
    ('LM_PYTHON', '-c'), ('LM_PYTHON', 'a\nb'), ('LM_PYTHON', 'x' * 5000), ('LM_EXTRAS', 'cuda] @ x'),
    ('LM_EXTRAS', '$(touch canary)'), ('LM_EXTRAS', 'a\nroot /')])
def test_an_odd_setting_is_one_line(machine, name, value):
    code, out, err = machine.run('show', **{name: value})
    assert (code, out, len(err.splitlines())) == (2, '', 1) and name in err and len(err) < 1000
    assert '; name one' in err or '; try' in err
    assert machine.installs() == [] and not list(machine.root.rglob('canary'))


@pytest.mark.parametrize('word', ['cd', 'exit', 'die', '-x', '', '--help', '$(touch canary)', 'a\nb'])
def test_what_is_no_program_is_refused(machine, word):
    machine.run('show')
    code, out, err = machine.run(word)
    assert (code, out, len(err.splitlines())) == (2, '', 1) and 'no command' in err and 'lm --help' in err


def test_a_program_may_have_any_name_and_get_any_words(machine):
    machine.run('show')
    for name in ('-x', "it's $(touch canary)", 'ü'):
        shutil.copy(machine.root / '.venv' / 'bin' / 'show', machine.root / '.venv' / 'bin' / name)
        assert machine.run(name, '--', '-n', '') == (0, f'{machine.root} -- -n \n', '')
    assert not list(machine.root.rglob('canary'))


def test_a_standard_error_that_takes_nothing_stops_no_installation(machine):
    for closed in ('>&-', '>/dev/full'):
        shutil.rmtree(machine.root / '.venv', ignore_errors=True)
        done = subprocess.run(['bash', '-c', f'exec launch/local.sh show 2{closed}'], cwd=machine.root, text=True,
                              env={'PATH': str(machine.bin), 'FAKE_LOG': str(machine.log)}, capture_output=True)
        assert (done.returncode, done.stdout) == (0, f'{machine.root} \n')


def test_an_unknown_command_is_named(machine):
    code, _, err = machine.run('shwo')
    assert code == 2 and "no command 'shwo'" in err


@pytest.mark.skipif(sys.platform != 'linux', reason='the launcher is for Linux')
def test_the_launcher_and_ci_are_executable_programs():
    for file in ('launch/local.sh', '.ci/run'):
        assert os.access(ROOT / file, os.X_OK)
        assert subprocess.run(['bash', '-n', ROOT / file], check=False).returncode == 0
