"""launch/local.py as a user starts it: several real processes on this machine."""
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
COLLECTIVE = r'''
import os, jax
jax.distributed.initialize(os.environ['LM_COORDINATOR'], int(os.environ['LM_PROCESSES']), int(os.environ['LM_PROCESS']))
from jax.experimental import multihost_utils
total = multihost_utils.process_allgather(jax.numpy.array(jax.process_index() + 1)).sum()
print(f'sum {total}\n', end='')  # in one write, which what Gloo prints meanwhile cannot divide
'''


def start(*words, cwd, **environ):
    environ = {**os.environ, 'JAX_PLATFORMS': 'cpu', **environ}
    environ = {name: value for name, value in environ.items() if value is not None}
    return subprocess.Popen([sys.executable, str(ROOT / 'launch' / 'local.py'), *words], cwd=cwd, env=environ,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def launch(*words, cwd, **environ):
    """Returns (exit code, standard output, standard error)."""
    process = start(*words, cwd=cwd, **environ)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def script(text):
    return ['--', 'bash', '-c', text]


@pytest.fixture
def gpus(tmp_path):
    """Returns the settings of a machine whose nvidia-smi lists four GPUs."""
    tool = tmp_path / 'bin' / 'nvidia-smi'
    tool.parent.mkdir()
    tool.write_text('#!/bin/bash\nprintf "%s\\n" 0 1 2 3\n')
    tool.chmod(0o755)
    return {'PATH': f'{tool.parent}:{os.environ["PATH"]}', 'JAX_PLATFORMS': None, 'CUDA_VISIBLE_DEVICES': None}


def test_every_process_knows_its_place_and_has_a_log(tmp_path):
    code, out, err = launch('--processes=3', '--logs=logs', *script('echo $LM_PROCESS/$LM_PROCESSES $LM_COORDINATOR'),
                            cwd=tmp_path)
    logs = [(tmp_path / 'logs' / f'{i}.log').read_text() for i in range(3)]
    assert code == 0 and out == f'[0] {logs[0]}' and '3 processes' in err
    assert [log.split()[0] for log in logs] == ['0/3', '1/3', '2/3']
    assert len({log.split()[1] for log in logs}) == 1


@pytest.mark.long
def test_processes_reach_each_other_through_jax(tmp_path):
    code, out, _ = launch('--processes=2', '--', sys.executable, '-c', COLLECTIVE, cwd=tmp_path)
    assert code == 0 and '[0] sum 3' in out


def test_one_failing_stops_all_and_shows_its_traceback(tmp_path):
    text = 'import os, time\nif os.environ["LM_PROCESS"] == "2":\n  {}["x"]\ntime.sleep(60)'
    code, _, err = launch('--processes=3', '--logs=logs', '--', sys.executable, '-c', text, cwd=tmp_path)
    assert code == 1 and 'process 2 ended with code 1; stopping 2 others' in err
    assert "[2] KeyError: 'x'" in err and '[2] Traceback (most recent call last):' in err


def test_a_process_that_will_not_stop_is_killed(tmp_path):
    text = 'if [[ $LM_PROCESS = 1 ]]; then exit 9; fi; trap "" TERM; while :; do sleep 0.1; done'
    code, _, err = launch('--processes=2', '--grace=0.3', *script(text), cwd=tmp_path)
    assert code == 9 and 'killing process 0, which did not stop' in err


@pytest.mark.long
def test_one_that_another_has_waited_for_in_vain_is_killed_soon(tmp_path):
    text = 'if [[ $LM_PROCESS = 1 ]]; then exit 76; fi; kill -STOP $$'
    began = time.monotonic()
    assert launch('--processes=2', *script(text), cwd=tmp_path)[0] == 76
    assert time.monotonic() - began < 30


def test_a_command_that_is_too_long_for_the_system_is_one_line():
    text = 'import shell, subprocess; shell.run(lambda words: subprocess.run(["true", "x" * int(words[0])]).returncode)'
    environ = {**os.environ, 'PYTHONPATH': ROOT / 'launch'}
    for size, code in ((2 ** 17 - 1, 0), (2 ** 17, 2)):
        done = subprocess.run([sys.executable, '-c', text, str(size)], env=environ, capture_output=True, text=True,
                              check=False)
        assert done.returncode == code
    assert 'are longer than this system takes; move settings' in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_all_and_a_saved_stop_is_75(tmp_path, number):
    text = 'trap "echo saved; exit 75" INT TERM; echo ready; while :; do sleep 0.05; done'
    process = start('--processes=2', '--logs=logs', *script(text), cwd=tmp_path)
    assert process.stdout.readline() == '[0] ready\n'
    other = tmp_path / 'logs' / '1.log'
    while not (other.exists() and other.read_text()):
        assert process.poll() is None
    process.send_signal(number)
    assert process.communicate(timeout=60)[0] == '[0] saved\n'
    assert process.returncode == 75 and other.read_text() == 'ready\nsaved\n'


def test_a_killed_process_gives_the_code_a_shell_gives(tmp_path):
    assert launch('--processes=1', *script('kill -KILL $$'), cwd=tmp_path)[0] == 137


def test_gpus_are_shared_out(tmp_path, gpus):
    text = 'echo $CUDA_VISIBLE_DEVICES'
    assert launch('--logs=all', *script(text), cwd=tmp_path, **gpus)[1] == '[0] 0\n'
    assert sorted(path.read_text() for path in (tmp_path / 'all').iterdir()) == ['0\n', '1\n', '2\n', '3\n']
    assert launch('--processes=2', *script(text), cwd=tmp_path, **gpus)[1] == '[0] 0,1\n'
    assert launch(*script(text), cwd=tmp_path, **{**gpus, 'CUDA_VISIBLE_DEVICES': '5,7'})[1] == '[0] 5\n'
    code, _, err = launch('--processes=3', *script(text), cwd=tmp_path, **gpus)
    assert code == 2 and '--processes=3 does not divide the 4 GPUs here; try --processes=4' in err


def test_dry_run_prints_what_runs_and_runs_nothing(tmp_path):
    code, out, _ = launch('--processes=2', '--port=1234', '--logs=l', '--dry-run', *script('touch "a b"'), cwd=tmp_path)
    assert code == 0 and not list(tmp_path.iterdir())
    assert out.splitlines()[2] == (f"env LM_COORDINATOR=127.0.0.1:1234 LM_PROCESSES=2 LM_PROCESS=1 bash -c "
                                   f"'touch \"a b\"' >>{tmp_path}/l/1.log 2>&1")
    assert subprocess.run(['sh', '-c', out], cwd=tmp_path, check=False).returncode == 0
    assert (tmp_path / 'a b').exists()


def test_a_program_that_is_not_on_path_runs_in_the_project(tmp_path):
    _, out, _ = launch('--processes=1', '--dry-run', '--', 'no-such-program', cwd=tmp_path)
    assert f'{ROOT}/launch/local.sh no-such-program >' in out


@pytest.mark.parametrize('words, message', [
    (['--processes=2'], 'no command is given; put it after --'),
    (['--processes=2', '--'], 'no command follows --'),
    (['--processes=0', '--', 'true'], "'0' is not a whole number of at least 1"),
    (['--proceses=2', '--', 'true'], 'unrecognized arguments: --proceses=2'),
    (['--', 'true'], 'this machine has no GPU to count; try --processes=2'),
])
def test_a_mistake_is_one_line(tmp_path, words, message):
    code, out, err = launch(*words, cwd=tmp_path)
    assert (code, out) == (2, '') and re.fullmatch(r'local\.py: .*\n', err) and message in err
