"""Whole processes, killed and starved: `lm train` as a user starts it, on one device."""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from lm import records

ROOT = pathlib.Path(__file__).resolve().parents[1]
STEPS, KILLS = (150, 20) if os.environ.get('LM_NIGHTLY') else (60, 8)
RUN = ('model.depth=1', 'model.width=32', f'steps={STEPS}', 'cadence.log=1', 'cadence.save=3',
       'data.batch=4', 'data.context=32')
XLA_FLAGS = '--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0'


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('faults')


def start(place, workdir, *overrides, **environ):
    """Starts `lm train` on the tiny experiment; token caches are shared by the runs of a test."""
    environ = {**os.environ, 'XLA_FLAGS': XLA_FLAGS, 'LM_CACHE': str(place / 'cache'), **environ}
    command = [sys.executable, '-m', 'lm', 'train', 'experiments/tiny.py', f'--workdir={workdir}', *RUN, *overrides]
    return subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process, code=0):
    """Returns (stdout, stderr) of a process that ends with an exit code."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, err
    return out, err


def losses(workdir):
    return {record['step']: record['loss'] for record in records.read(workdir) if 'loss' in record}


@pytest.fixture(scope='module')
def straight(place):
    finish(start(place, place / 'straight'))
    return losses(place / 'straight')


def kill_storm(place, workdir, kills, straight):
    """Kills a run at random moments until it has been killed `kills` times, then lets it end; asserts equal losses."""
    dice, killed, reached = random.Random(kills), 0, 0
    while killed < kills:
        process = start(place, workdir)
        # Some kills fall in the start-up, the others a few steps further than the one before, in steps or saves.
        goal = reached + dice.randrange(2 + (len(straight) - reached) // (2 * (kills - killed)))
        while process.poll() is None and max(losses(workdir), default=0) < goal:
            time.sleep(0.005)
        time.sleep(dice.random() * 0.05)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        reached = max(losses(workdir), default=0)
    finish(start(place, workdir))
    assert losses(workdir) == straight
    assert killed > kills // 2


def test_killed_three_times_and_resumed_is_bit_equal(place, straight):
    kill_storm(place, place / 'thrice', 3, straight)


@pytest.mark.long
def test_many_random_kills_and_resumed_is_bit_equal(place, straight):
    kill_storm(place, place / 'storm', KILLS, straight)


def test_sigterm_saves_and_exits_with_its_own_code(place, straight):
    workdir = place / 'term'
    process = start(place, workdir)
    while max(losses(workdir), default=0) < 5:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process, code=75)
    assert 'run the same command to resume' in out
    stopped = max(losses(workdir))
    assert (workdir / 'checkpoints' / str(stopped)).is_dir()
    finish(start(place, workdir))
    assert losses(workdir) == straight


def test_disk_full_while_saving_keeps_the_last_good_checkpoint(place, straight):
    """A limit on the size of files stands for the full disk: the record is small enough, the second save is not."""
    workdir = place / 'full'
    first = start(place, workdir)
    while not list((workdir / 'checkpoints').glob('[0-9]*/commit_success.txt')) and first.poll() is None:
        if len(losses(workdir)) > 8:
            break
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    finish(first, code=75)
    good = max(losses(workdir))
    limited = subprocess.run(['bash', '-c', 'ulimit -f 48; exec "$@"', '-', sys.executable, '-c', LIMITED, str(workdir),
                              *RUN], cwd=ROOT, capture_output=True, text=True, timeout=300, env={
        **os.environ, 'XLA_FLAGS': XLA_FLAGS, 'LM_CACHE': str(place / 'cache'), **UNWRITTEN})
    assert limited.returncode == 2, limited.stderr
    line = [line for line in limited.stderr.split('\n') if line.startswith('lm: ')]
    assert len(line) == 1 and 'the last good checkpoint is' in line[0]
    assert (workdir / 'checkpoints' / str(good)).is_dir()
    finish(start(place, workdir))
    assert losses(workdir) == straight


@pytest.mark.parametrize('size', ['16k', '120k', '700k'])
def test_a_disk_that_is_full_is_one_line_and_the_run_goes_on_once_there_is_room(place, straight, tmp_path, size):
    """A file system of its own, too small for the record, for the first save, for those after it."""
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', tmp_path]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('mounting a file system is not permitted here')
    try:
        _, err = finish(start(place, tmp_path / 'run'), code=2)
        told = [line for line in err.split('\n') if line and not line.startswith('attention: ')]
        assert len(told) == 1 and 'No space left on device; ' in told[0], err
        assert len(told[0]) < 400
        subprocess.run(['mount', '-o', 'remount,size=20m', tmp_path], check=True)
        finish(start(place, tmp_path / 'run'))
        assert losses(tmp_path / 'run') == straight
    finally:
        subprocess.run(['umount', '-l', tmp_path], check=True)


# Compiled programs are read and not written, where the limit would cut them short for other tests.
UNWRITTEN = {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '1e9'}
LIMITED = """
import signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from lm import cli
workdir, *overrides = sys.argv[1:]
sys.exit(cli.main(['train', 'experiments/tiny.py', f'--workdir={workdir}', *overrides]))
"""


def test_one_clear_line_for_each_mistake(place, tmp_path):
    for override, said in [('model.dept=2', "did you mean 'model.depth'?"), ('seed=two', 'is not an int'),
                           ('model.layer.attention.heads=5', 'width=32 is not a multiple of heads=5; try model.w')]:
        _, err = finish(start(place, tmp_path / 'run', override), code=2)
        assert err.startswith('lm: ') and err.count('\n') == 1 and said in err
    assert not (tmp_path / 'run').exists()


def test_versions_and_commit_are_beside_the_metrics(place, straight):
    about = json.loads((place / 'straight' / 'config.json').read_text())
    assert about['versions']['python'] == sys.version.split()[0]
