import atexit
import os
import pathlib
import shutil
import signal
import tempfile

import hypothesis
import pytest

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile('untimed', deadline=None)
hypothesis.settings.load_profile('untimed')

# A shell that starts the tests in the background has them ignore SIGINT, and so would all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The folder of data sets (docs/data.md): LM_DATA, or the one beside the project where there is one.
BESIDE = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
if BESIDE.is_dir():
    os.environ.setdefault('LM_DATA', str(BESIDE))

# Read by JAX when it is first imported, here and in the processes that tests start.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['PJRT_NPROC'] = '16'  # threads for 8 devices: on fewer, their all-reduces can starve
# Unoptimised code compiles in half the time, and at the sizes of tests compiling is nearly all the time there is.
os.environ['XLA_FLAGS'] = (f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count=8 '
                           '--xla_backend_optimization_level=0').strip()
# Programs compiled once are read again by all workers, and by the processes that tests start. The folder is new for
# every run of pytest, unless the caller sets one; its keys hold the program, the flags, the devices and the version.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='lm-compiled-')
    atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')


@pytest.fixture
def shared():
    """Returns what `/` a data set's name, or that of one of its files, gives the path of; skips where it is absent."""
    return DataSets()


class DataSets:
    def __truediv__(self, name):
        path = pathlib.Path(os.environ.get('LM_DATA') or 'data').expanduser().absolute() / name
        if not path.exists():
            pytest.skip(f'{path} is absent; docs/data.md says where it is had, LM_DATA where it is looked for')
        return path


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
