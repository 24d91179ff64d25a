"""Imports point down, and the limits of style hold."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLOORS = {
    'lm/__init__.py': 0, 'lm/config/': 0, 'lm/trees.py': 0, 'lm/hardware.py': 0,
    'lm/hosts.py': 1, 'lm/watch.py': 1,
    'lm/sharding.py': 1, 'lm/layers.py': 1, 'lm/positions.py': 1, 'lm/attention/': 1, 'lm/losses.py': 1,
    'lm/sums.py': 1, 'lm/pipeline.py': 1,
    'lm/optim/': 1, 'lm/data/': 1,
    'lm/models/': 2,
    'lm/train.py': 3, 'lm/loop.py': 3, 'lm/runs.py': 3, 'lm/checkpoint.py': 3, 'lm/metrics.py': 3,
    'lm/generate.py': 3, 'lm/evaluate.py': 3, 'lm/replay.py': 3, 'lm/spikes.py': 3, 'lm/noise.py': 3, 'lm/log.py': 3,
    'lm/bench.py': 4, 'lm/bisect/': 4, 'lm/tasks/': 4, 'lm/convert/': 4, 'lm/compress/': 4, 'lm/interpret/': 4,
    'lm/federated.py': 4, 'lm/plan/': 4,
    'lm/sweep/': 5, 'lm/report/': 5, 'lm/scaling/': 5, 'lm/coordinates.py': 5, 'lm/serve.py': 5,
    'lm/cli.py': 6, 'lm/__main__.py': 6,
}
FILES = sorted(path.relative_to(ROOT).as_posix() for room in ('lm', 'experiments', 'launch')
               for path in (ROOT / room).rglob('*.py'))
LM = [file for file in FILES if file.startswith('lm/')]


def tree_of(file):
    return ast.parse((ROOT / file).read_text(encoding='utf-8'))


def floor_of(file):
    """Returns the floor of a file, by its own row of the table or its folder's."""
    rooms = [room for room in (file, file[:file.rfind('/') + 1]) if room in FLOORS]
    assert rooms, f'{file} is in no room; give it a row in FLOORS'
    return FLOORS[rooms[0]]


def modules_of(tree, package=('lm',)):
    """Returns the dotted names that a file imports, also inside functions; `from a import b` gives both a and a.b."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join([*package[:len(package) - node.level + 1], *([node.module] if node.module else [])])
            base = base if node.level else node.module
            names |= {base} | {f'{base}.{alias.name}' for alias in node.names}
    return names


def files_imported(file):
    """Returns the files of lm/ that a file imports; the packages around them are not counted."""
    found = set()
    for name in modules_of(tree_of(file), tuple(file.split('/')[:-1])):
        path = name.replace('.', '/')
        found |= {f for f in (f'{path}.py', f'{path}/__init__.py') if f in LM}
    return found - {'lm/__init__.py'}


def functions_of(file):
    return [node for node in ast.walk(tree_of(file)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


@pytest.mark.parametrize('file', LM)
def test_imports_point_down(file):
    above = {other for other in files_imported(file) if floor_of(other) > floor_of(file)}
    assert not above, f'{file} is on floor {floor_of(file)} and imports {above}'


@pytest.mark.parametrize('file', LM)
def test_lm_imports_neither_experiments_nor_launch(file):
    assert not {name for name in modules_of(tree_of(file)) if name.split('.')[0] in ('experiments', 'launch')}


@pytest.mark.parametrize('file', [file for file in FILES if file.startswith('launch/')])
def test_launch_imports_nothing_of_lm(file):
    assert not {name for name in modules_of(tree_of(file)) if name.split('.')[0] == 'lm'}


@pytest.mark.parametrize('file', [file for file in LM if file.startswith('lm/data/')])
def test_data_is_numpy_only(file):
    queue, seen = [file], set()
    while queue:
        current = queue.pop()
        seen.add(current)
        heavy = {name.split('.')[0] for name in modules_of(tree_of(current))} & {'jax', 'flax', 'optax', 'torch'}
        assert not heavy, f'{file} reaches {current}, which imports {heavy}'
        queue += files_imported(current) - seen


@pytest.mark.parametrize('file', [file for file in LM if file != 'lm/checkpoint.py'])
def test_only_checkpoint_knows_orbax(file):
    assert not {name for name in modules_of(tree_of(file)) if name.split('.')[0] == 'orbax'}


@pytest.mark.parametrize('module', ['lm', 'lm.config', 'lm.cli'])
def test_import_is_light(module):
    code = f'import sys, {module}; print([name for name in ("jax", "numpy", "rich") if name in sys.modules])'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == '[]'


@pytest.mark.parametrize('file', FILES)
def test_files_are_short(file):
    lines = len((ROOT / file).read_text(encoding='utf-8').splitlines())
    assert lines <= 300, f'{file} has {lines} lines'


@pytest.mark.parametrize('file', FILES)
def test_functions_are_short_and_take_few_parameters(file):
    for function in functions_of(file):
        lines = function.end_lineno - function.lineno + 1
        assert lines <= 60, f'{file}: {function.name} has {lines} lines'
        positional = [arg.arg for arg in function.args.posonlyargs + function.args.args]
        positional = positional[1:] if positional[:1] in (['self'], ['cls']) else positional
        assert len(positional) <= 5, f'{file}: {function.name} takes {len(positional)} positional parameters'


@pytest.mark.parametrize('file', FILES)
def test_no_leftovers(file):
    assert pathlib.Path(file).stem not in ('utils', 'helpers', 'common', 'misc')
    text = (ROOT / file).read_text(encoding='utf-8')
    assert not [word for word in ('TODO', 'FIXME', 'XXX') if word in text]


@pytest.mark.parametrize('source, names', [
    ('import a.b', {'a.b'}),
    ('def f():\n    from lm import data', {'lm', 'lm.data'}),
    ('from . import layers', {'lm', 'lm.layers'}),
    ('from .data import cache', {'lm.data', 'lm.data.cache'}),
])
def test_every_form_of_import_is_seen(source, names):
    assert modules_of(ast.parse(source)) == names
