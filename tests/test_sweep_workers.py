"""Workers that are killed: their trials are taken over and end as if nothing had happened."""
import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from sweeps import FILE

from lm import config, records, train
from lm.sweep import claims, trials, vectors
from lm.train import checkpoint

LONG = (FILE.replace('steps=6', 'steps=300').replace('save=2', 'save=20')
        .replace(' eval=2', ' eval=100'))


def plans(folder, count):
    """Returns two sweeps of `count` seeds of the same experiment."""
    (folder / 'small.py').write_text(LONG)
    loaded = config.load(folder / 'small.py')
    seeds = [{'seed': seed} for seed in range(count)]
    return [trials.plan(loaded, folder / name, seeds) for name in ('stormy', 'calm')]


def start(sweep, *words):
    """Starts a worker; token caches are shared by the workers of a test."""
    folder = sweep.directory.parent
    command = [sys.executable, '-m', 'lm', 'sweep', '--worker', sweep.directory, '--cache', folder / 'cache', *words]
    environ = {**os.environ, 'XLA_FLAGS': '--xla_backend_optimization_level=0'}
    return subprocess.Popen([str(word) for word in command], env=environ, stdout=subprocess.DEVNULL)


def recorded(trial):
    return [{name: value for name, value in record.items() if name != 'tokens_per_second'}
            for record in records.read(trial.directory)]


def begun_at(trial):
    """Returns the steps after which the trial was begun or resumed: the first record of a start has no speed."""
    return [record['step'] - 1 for record in records.read(trial.directory)
            if 'loss' in record and 'tokens_per_second' not in record]


def assert_twins(stormy, calm):
    """Asserts that each trial has the record, the sample and the last state of its twin, bit for bit."""
    assert set(trials.states(stormy)[0].values()) == {'finished'}
    abstract = train.program(calm.base).abstract
    for one, other in zip(stormy.trials, calm.trials, strict=True):
        assert recorded(one) == recorded(other) and len(recorded(one)) > one.settings.steps
        assert (one.directory / 'sample.txt').read_text() == (other.directory / 'sample.txt').read_text()
        ours, twins = (checkpoint.Store(trial.directory / 'checkpoints').restore(abstract) for trial in (one, other))
        jax.tree.map(np.testing.assert_array_equal, ours, twins)


def in_progress(sweep, workers, least=1):
    """Returns [(trial, worker)] of the workers that are between step `least` and the last one of a trial."""
    own = {worker.pid: worker for worker in workers if worker.poll() is None}
    newest, found = claims.Claims(sweep.directory).newest(), []
    for trial in sweep.trials:
        text = (sweep.directory / 'claims' / f'{trial.id}.{newest[trial.id]}').read_text() if trial.id in newest else ''
        pid = json.loads(text or '{}').get('pid')
        if pid in own and least <= trials.progress(trial)[0] < trial.settings.steps:
            found.append((trial, own[pid]))
    return found


def finished(sweep):
    return list(trials.states(sweep)[0].values()).count('finished')


@pytest.mark.long
def test_a_storm_of_kills_leaves_all_trials_equal_to_their_twins(tmp_path):
    """Four workers; whenever three more trials are finished, one in the middle of another is killed and replaced."""
    count = 40 if os.environ.get('LM_NIGHTLY') else 16
    stormy, calm = plans(tmp_path, count)
    quiet = [start(calm) for _ in range(2)]
    assert [worker.wait() for worker in quiet] == [0, 0]
    workers, struck, dice = [start(stormy) for _ in range(4)], [], random.Random(0)
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.1)
        targets = in_progress(stormy, workers) if finished(stormy) >= 3 * len(struck) else ()
        if targets:
            trial, worker = dice.choice(targets)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            workers = [*(each for each in workers if each is not worker), start(stormy)]
            if trial.settings.steps not in trials.progress(trial)[1]:
                struck.append((trial, vectors.saved(trial)))
    assert [worker.returncode for worker in workers] == [0] * 4
    assert len(struck) >= count // 4 and sum(saved > 0 for _, saved in struck) >= count // 8
    assert all(saved in begun_at(trial) for trial, saved in struck)
    assert_twins(stormy, calm)


@pytest.mark.long
def test_killed_and_stopped_workers_leave_trials_in_one_program_equal_to_their_twins(tmp_path):
    stormy, calm = plans(tmp_path, 4)
    assert start(calm, '--together=4').wait() == 0
    for step, kill in (30, signal.SIGKILL), (70, signal.SIGTERM), (130, signal.SIGKILL):
        workers = [start(stormy, '--together=4') for _ in range(2)]
        while not (targets := in_progress(stormy, workers, step)) and any(each.poll() is None for each in workers):
            time.sleep(0.05)
        for worker in (targets[0][1], *workers):
            worker.send_signal(kill if worker is targets[0][1] else signal.SIGTERM)
            worker.wait()
    assert any(map(vectors.saved, stormy.trials)) and not finished(stormy)
    last = [start(stormy, '--together=4') for _ in range(2)]
    assert [worker.wait() for worker in last] == [0, 0]
    assert_twins(stormy, calm)
