"""Every module can be imported, which an interpreter or a version of JAX that lacks something fails."""
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = [path.relative_to(ROOT).with_suffix('').parts for path in sorted((ROOT / 'lm').rglob('*.py'))]
MODULES = ['.'.join(parts[:-1] if parts[-1] == '__init__' else parts) for parts in FILES if parts[-1] != '__main__']


@pytest.mark.parametrize('name', MODULES)
def test_a_module_can_be_imported(name):
    assert importlib.import_module(name).__name__ == name
