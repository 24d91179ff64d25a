"""The import graph has no cycle, and the limits of style hold."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted(path.relative_to(ROOT).as_posix() for room in ('lm', 'experiments', 'launch')
               for path in (ROOT / room).rglob('*.py'))
LM = [file for file in FILES if file.startswith('lm/')]
VAGUE = {'found', 'given', 'each', 'said', 'told'}  # names in whose place a noun tells what it is


def tree_of(file):
    return ast.parse((ROOT / file).read_text(encoding='utf-8'))


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
    """Returns the files of lm/ that a file imports; a package counts where a name of its own `__init__` is imported."""
    package, found = tuple(file.split('/')[:-1]), set()
    for node in ast.walk(tree_of(file)):
        names = modules_of(node, package) if isinstance(node, (ast.Import, ast.ImportFrom)) else set()
        files = {name: f for name in names for f in (as_path(name, '.py'), as_path(name, '/__init__.py')) if f in LM}
        bases = {name for name in files if name + '.' in {other[:len(name) + 1] for other in names}}
        found |= {f for name, f in files.items() if name not in bases or len(files) < len(names)}
    return found - {'lm/__init__.py'}


def as_path(name, end):
    return name.replace('.', '/') + end


def functions_of(file):
    return [node for node in ast.walk(tree_of(file)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def names_of(tree):
    """Returns the names that a file gives to variables, parameters, attributes, functions and classes."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)
              and isinstance(node.ctx, ast.Store)}
    names |= {node.name for node in ast.walk(tree)
              if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.MatchAs, ast.MatchStar))}
    names |= {node.asname for node in ast.walk(tree) if isinstance(node, ast.alias)}
    return names | {node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)}


def room_of(file):
    """Returns the folder of lm/ that a file is in, or the file itself where it lies loose."""
    return '/'.join(file.split('/')[:2])


def cycle_in(graph):
    """Returns the nodes of a cycle of a graph {node: nodes it points to}, in order, or []."""
    finished, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node):]
        if node in finished:
            return []
        path.append(node)
        cycle = next(filter(None, map(visit, sorted(graph[node]))), [])
        path.pop()
        finished.add(node)
        return cycle
    return next(filter(None, map(visit, sorted(graph))), [])


def test_no_import_cycle_of_files():
    assert cycle_in({file: files_imported(file) - {file} for file in LM}) == []


def test_no_import_cycle_of_folders():
    rooms = {room_of(file): set() for file in LM}
    for file in LM:
        rooms[room_of(file)] |= {room_of(other) for other in files_imported(file)} - {room_of(file)}
    assert cycle_in(rooms) == []


def test_cycles_are_seen():
    assert cycle_in({'a': {'b'}, 'b': {'c'}, 'c': set()}) == []
    assert cycle_in({'a': {'b'}, 'b': {'c'}, 'c': {'b'}}) == ['b', 'c']


def test_few_files_lie_loose():
    assert len([file for file in LM if file.count('/') == 1]) <= 10


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


@pytest.mark.parametrize('file', [file for file in LM if not file.startswith('lm/train/checkpoint')])
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


@pytest.mark.parametrize('file', LM)
def test_names_are_nouns_that_tell_what_they_are(file):
    assert names_of(tree_of(file)) & VAGUE == set()


@pytest.mark.parametrize('source', [
    'found = 1', 'for each in x: pass', 'f = lambda given: 1', 'def f(*told): pass', 'self.said = 1',
    'def found(): pass', 'import numpy as told', '[0 for each in x]', 'y = (said := 1)', 'with x as found: pass',
    'a, (b, told) = x', 'class C:\n    given: int = 1', 'try:\n    pass\nexcept E as found:\n    pass',
    'match x:\n    case [*each]:\n        pass', 'match x:\n    case int() as told:\n        pass'])
def test_every_form_of_name_is_seen(source):
    assert len(names_of(ast.parse(source)) & VAGUE) == 1
    assert not names_of(ast.parse('print(found, x.given, f(each=1), "told")')) & VAGUE


@pytest.mark.parametrize('source, names', [
    ('import a.b', {'a.b'}),
    ('def f():\n    from lm import data', {'lm', 'lm.data'}),
    ('from . import layers', {'lm', 'lm.layers'}),
    ('from .data import cache', {'lm.data', 'lm.data.cache'}),
])
def test_every_form_of_import_is_seen(source, names):
    assert modules_of(ast.parse(source)) == names
