"""Faults of one of several processes that the others name: killed, frozen, slow, failing, with other settings."""
import signal
import socket
import time

import numpy as np
import pytest
from processes import RUN, finish, losses, start, train, wait_for

from lm import records
from lm.parallel import heartbeat


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('hosts')


@pytest.mark.long
@pytest.mark.parametrize('lost', [0, 1])
@pytest.mark.parametrize('blow', [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_killed_or_frozen_ends_the_other_by_name_within_a_minute_and_the_run_resumes(place, lost, blow):
    workdir = place / f'lost-{lost}-{blow}'
    started = train(place, workdir, 'steps=400')
    wait_for(workdir, 6, started)
    started[lost].send_signal(blow)
    began = time.monotonic()
    started[1 - lost].wait(100)
    assert time.monotonic() - began < 60
    started[lost].kill()
    said = finish(started, *(-9 if i == lost else heartbeat.LOST for i in range(2)))
    assert f'lm: host {lost} ({socket.gethostname()}) is lost' in said[1 - lost][1]
    assert 'to resume it, run the same command on all hosts' in said[1 - lost][1]
    reached = max(losses(workdir))
    again = train(place, workdir, 'steps=400')
    wait_for(workdir, reached + 1, again)
    again[0].send_signal(signal.SIGTERM)
    finish(again, 75)


SLOW = """
import os, sys, time
from lm import cli
from lm.train import feed
serve = feed.serve
def slow(*args):
    time.sleep(0.4 * int(os.environ['LM_PROCESS']))
    return serve(*args)
feed.serve = slow
sys.exit(cli.main(['train', 'experiments/tiny.py', *sys.argv[1:]]))
"""


@pytest.mark.long
def test_a_slow_host_is_named(place):
    workdir = place / 'slow'
    (_, err), _ = finish(start(place, ['-c', SLOW, f'--workdir={workdir}', *RUN, 'steps=40']), 0)
    assert f'lm: host 1 ({socket.gethostname()}) is slow: it takes' in err
    assert max(record.get('host_seconds_max', 0) for record in records.read(workdir)) > 0.3


FRAGILE = """
import sys
import jax.numpy as jnp
from lm import cli
from lm.train import NextToken, feed
serve, loss = feed.serve, NextToken.loss
class Marked:
    def __init__(self, stream):
        self.stream, self.batch = stream, stream.batch
    def batch_at(self, step, rows):
        batch = self.stream.batch_at(step, rows)
        batch['inputs'][:] = -1 if 9 <= step < 14 else batch['inputs']
        return batch
def fragile(self, model, params, batch, key=None):
    value, measured = loss(self, model, params, batch, key)
    bad = jnp.where(jnp.min(batch['inputs']) < 0, jnp.nan, 1.0)
    return value * bad, {**measured, 'loss': measured['loss'] * bad}
NextToken.loss = fragile
feed.serve = lambda stream, *rest: serve(Marked(stream), *rest)
sys.exit(cli.main(['train', 'experiments/tiny.py', *sys.argv[1:]]))
"""


@pytest.mark.long
def test_two_processes_go_back_together_past_batches_that_are_not_finite(place):
    workdir = place / 'fragile'
    finish(start(place, ['-c', FRAGILE, f'--workdir={workdir}', *RUN, 'steps=20']), 0)
    assert list(losses(workdir)) == list(range(1, 21))
    assert all(np.isfinite(list(losses(workdir).values())))


@pytest.mark.long
def test_hosts_that_differ_are_told_in_what(place):
    other = ['-c', 'import sys; from lm import cli; i = __import__("os").environ["LM_PROCESS"]; '
             'sys.exit(cli.main(["train", "experiments/tiny.py", *sys.argv[1:], f"seed={i}"]))']
    said = finish(start(place, [*other, f'--workdir={place / "differ"}', *RUN]), 2)
    assert all('lm: seed is 0 on host 0 and 1 on host 1' in err for _, err in said)


@pytest.mark.long
def test_one_that_fails_ends_the_other_with_its_reason(place):
    code = """
import os
from lm import config
from lm.parallel import processes
with processes.joined():
    if processes.first():
        raise config.Error('the disk is full; free some.')
    processes.gather(None)
"""
    (_, first), (_, second) = finish(start(place, ['-c', code]), 2, heartbeat.LOST)
    assert 'lm: the disk is full; free some.' in first
    assert f'lm: host 0 ({socket.gethostname()}) failed: the disk is full' in second
