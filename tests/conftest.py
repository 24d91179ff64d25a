import os
import pathlib
import shutil
import signal

import pytest

# A shell that starts the tests in the background has them ignore SIGINT, and so would all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Read by JAX when it is first imported, here and in the processes that tests start.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['PJRT_NPROC'] = '16'  # threads for 8 devices: on fewer, their all-reduces can starve
# Unoptimised code compiles in half the time, and at the sizes of tests compiling is nearly all the time there is.
os.environ['XLA_FLAGS'] = (f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8 '
                           '--xla_backend_optimization_level=0').strip()


@pytest.fixture
def shared():
    """Returns the folder of real data sets beside the project, or skips where it is absent."""
    folder = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
    if not folder.is_dir():
        pytest.skip('the data sets of ../shared/data are not here')
    return folder


@pytest.fixture
def swept(tmp_path):
    """A baseline, a variant that is better by 0.1, and one that differs in nothing that matters; five seeds each."""
    import simulated
    return simulated.sweep(tmp_path / 'sweep', {
        'a': ({}, 3.0), 'b': (simulated.BETTER, 2.9), 'c': (simulated.SAME, 3.0)})


@pytest.fixture
def browser():
    """Returns the path of Chromium, or skips where it is not installed."""
    found = shutil.which('chromium') or shutil.which('google-chrome')
    if not found:
        pytest.skip('no Chromium is installed')
    return found
