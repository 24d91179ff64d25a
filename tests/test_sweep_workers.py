"""Workers that are killed: their trials are taken over and end as if nothing had happened."""
import os
import signal
import subprocess
import sys
import time

import pytest
from sweeps import FILE

from lm import config, metrics
from lm.sweep import trials


def start(*words):
    command = [sys.executable, '-m', 'lm', 'sweep', *map(str, words)]
    return subprocess.Popen(command, env={**os.environ, 'XLA_FLAGS': ''}, stdout=subprocess.DEVNULL)


def recorded(trial):
    return [{name: value for name, value in record.items() if name != 'tokens_per_second'}
            for record in metrics.read(trial.directory)]


def underway(sweep):
    """Returns whether a trial has saved something and is not at its end."""
    return any(6 <= max((record['step'] for record in recorded(trial)), default=0) < trial.settings.steps
               for trial in sweep.trials)


@pytest.mark.long
@pytest.mark.parametrize('width', [1, 4])
def test_killed_workers_leave_a_sweep_equal_to_one_that_was_never_killed(tmp_path, width):
    (tmp_path / 'small.py').write_text(FILE.replace('steps=6', 'steps=400'))
    over = [{'seed': seed} for seed in range(4)]
    loaded = config.load(tmp_path / 'small.py')
    stormy, calm = (trials.plan(loaded, tmp_path / name, over) for name in ('stormy', 'calm'))
    where = ('--cache', tmp_path / 'cache', '--together', width, '--worker')
    assert start(calm.directory, *where).wait() == 0
    for kill in range(3):
        workers = [start(stormy.directory, *where) for _ in range(2)]
        while not underway(stormy) and any(worker.poll() is None for worker in workers):
            time.sleep(0.05)
        for worker in workers[kill % 2:]:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        survivors = [worker for worker in workers if worker.poll() is None]
        for worker in survivors:
            worker.send_signal(signal.SIGTERM)
            worker.wait()
    last = [start(stormy.directory, *where) for _ in range(2)]
    assert [worker.wait() for worker in last] == [0, 0]
    assert set(trials.states(stormy)[0].values()) == {'finished'}
    for one, other in zip(stormy.trials, calm.trials, strict=True):
        assert recorded(one) == recorded(other) and len(recorded(one)) > 400
