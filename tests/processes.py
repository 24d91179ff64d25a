"""Several real processes over loopback, each a command with devices of its own, and what they left behind."""
import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np

from lm import records

ROOT = pathlib.Path(__file__).resolve().parents[1]
RUN = ('model.depth=1', 'model.width=32', 'cadence.log=1', 'cadence.save=4', 'data.batch=8', 'data.context=16',
       'cadence.eval_batches=2')


def free_port():
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def start(place, command, processes=2, devices=1):
    """Starts a command on several processes with `devices` each, and returns them; token caches are in `place`."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(('LM_', 'SLURM_'))}
    environ |= {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0',
                'LM_CACHE': str(place / 'cache')}
    address, started = f'127.0.0.1:{free_port()}', []
    for i in range(processes):
        joint = {'LM_COORDINATOR': address, 'LM_PROCESSES': str(processes), 'LM_PROCESS': str(i)}
        started.append(subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                                        env=environ | (joint if processes > 1 else {}), stderr=subprocess.PIPE))
    return started


def train(place, workdir, *overrides, processes=2, devices=1):
    return start(place, ['-m', 'lm', 'train', 'experiments/tiny.py', f'--workdir={workdir}', *RUN, *overrides],
                 processes, devices)


def finish(started, *codes):
    """Returns [(stdout, stderr)] of processes that end with these exit codes, or all with the one given."""
    try:
        said = [process.communicate(timeout=400) for process in started]
    finally:
        for process in started:
            process.kill()
    found = [process.returncode for process in started]
    assert found == list(codes if len(codes) > 1 else codes * len(started)), said
    return said


def losses(workdir):
    return {record['step']: record['loss'] for record in records.read(workdir) if 'loss' in record}


def wait_for(workdir, step, started):
    while max(losses(workdir), default=0) < step:
        assert all(process.poll() is None for process in started), [p.communicate() for p in started]
        time.sleep(0.05)


def same(workdir, expected):
    """Asserts the losses of another run within 2e-5 of each: sums over hosts are rounded in another order."""
    found = losses(workdir)
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=2e-5)
