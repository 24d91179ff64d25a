"""Experiment files: loaded with overrides applied, and where each value came from."""

from __future__ import annotations

import collections.abc
import contextlib
import dataclasses
import functools
import hashlib
import importlib
import itertools
import os
import pathlib
import sys
import traceback
import types

from lm.config import beside, files
from lm.config.annotations import Error, close, default, first_line, is_component, message, printed
from lm.config.overrides import branches, check_inside, children, flatten, join, override
from lm.config.snapshots import restore
from lm.config.values import EXPERIMENT, Text

MOST = 10_000  # trials that a sweep() may yield, so that one without an end is told


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a file's `config()` returned with overrides applied.

    `provenance` maps each dotted key to 'default', 'file' or 'override'; `file` is the absolute path.
    """

    config: object
    provenance: dict[str, str]
    file: pathlib.Path


def load(path, overrides=(), kind=object):
    """Returns the `Experiment` of a file with `overrides` applied: texts 'a.b=value', or {dotted key: value}.

    Raises `Error`, in one line, for a missing or broken file, for a config() that returns no dataclass of `kind`, and
    for an override that does not fit.
    """
    declared = _config_of(path, open_file(path), kind)
    changes = typed(overrides)
    origins = _origins(declared)
    with _importing_beside(path):
        config = override(declared, changes) if changes else declared
    provenance = {key: 'override' if _within(key, changes) else origins[key] for key in flatten(config)}
    return Experiment(config, provenance, pathlib.Path(path).resolve())


def sweep(path):
    """Returns the list of overrides, one dict a run, that the `sweep()` of an experiment file yields, MOST at most."""
    module = open_file(path)
    if not callable(getattr(module, 'sweep', None)):
        raise Error(f'{path} has no sweep(); define one that yields dicts of overrides.')
    with _reporting(path), _importing_beside(path):
        runs = list(itertools.islice(module.sweep(), MOST + 1))
    if len(runs) > MOST:
        raise Error(f'{path}: sweep() yields more than {MOST:,} trials; yield fewer, or search with lm sweep --sample.')
    for run in runs:
        if not isinstance(run, dict) or not all(isinstance(key, str) for key in run):
            raise Error(f'{path}: sweep() yields {printed(run)}, not a dict of overrides; yield {{"model.depth": 12}}.')
    return runs


def build(dumped, file=None):
    """Returns the configuration that `dump` made `dumped` of: of types of lm alone, unless a `file` is trusted.

    `file` is the experiment file that it came from, executed where the configuration has types of its own.
    """
    try:
        if file is None:
            return restore(dumped)
        with _importing_beside(file):
            experiment = functools.cache(lambda: open_file(file))
            return restore(dumped, lambda name: experiment() if name == EXPERIMENT else importlib.import_module(name))
    except Error:
        raise
    except Exception as error:  # a damaged record can be wrong anywhere, and a trusted experiment raise anything
        raise Error(f'the record is damaged ({first_line(error)})') from error


def open_file(path):
    """Returns an experiment file as a module; its sibling files can be imported as `from experiments import name`."""
    file = pathlib.Path(path)
    if not os.path.isfile(file):  # unlike pathlib's, of a name that is too long too
        raise Error(_missing(file))
    name = f'{EXPERIMENT}@{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}'
    module = types.ModuleType(name)
    module.__file__ = str(file.resolve())
    with _reporting(path), _importing_beside(path):
        code = compile(file.read_bytes(), module.__file__, 'exec', dont_inherit=True)
        sys.modules[name] = module
        exec(code, vars(module))
    return module


def _config_of(path, module, kind):
    if not callable(getattr(module, 'config', None)):
        raise Error(f'{path} has no config(); define one that returns train.Config(...).')
    with _reporting(path), _importing_beside(path):
        config = module.config()
    if not (is_component(config) and isinstance(config, kind)):
        returned = f'the class {config.__name__}' if isinstance(config, type) else type(config).__name__
        wanted = 'a dataclass' if kind is object else f'the {kind.__name__} of {kind.__module__.rpartition(".")[0]}'
        raise Error(f'{path}: config() returned {returned}, not {wanted}; return train.Config(...).')
    with _reporting(path):
        check_inside(config)
    return config


def _missing(file):
    inside = os.path.isdir(file)
    folders = [folder for folder in ([file] if inside else [file.parent, pathlib.Path('experiments')])
               if os.path.isdir(folder)]
    files = {str(other): other.stem for folder in folders for other in sorted(folder.glob('*.py'))
             if other.is_file() and b'def config(' in other.read_bytes()}
    near = [path for stem in close(file.stem, files.values()) for path in files if files[path] == stem]
    kind = 'a directory' if inside else 'no regular file'
    fact = f'{str(file)!r} is {kind}' if os.path.exists(file) else f'no experiment file {str(file)!r}'
    if near and not inside:
        return f'{fact}; did you mean {near[0]!r}?'
    return f'{fact}; give {"one of " + ", ".join(files) if files else "the path of a .py file"}.'


@contextlib.contextmanager
def _reporting(path):
    """Turns what the code of an experiment file raises into an `Error` with the number of the line behind it.

    That includes SystemExit: whoever calls the code of a file has not done its own work then, whatever the code.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        file = str(pathlib.Path(path).resolve())
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        if isinstance(error, SyntaxError) and error.filename == file:
            lines, text = [error.lineno], f'{type(error).__name__}: {error.msg}'
        else:
            text = ' '.join(message(error).split())
            text = text if isinstance(error, ValueError) else f'{type(error).__name__}: {text}'
        place = f'{path}:{lines[-1]}' if lines else str(path)
        remedy = '; an experiment is imported: take sys.exit out of it.' if isinstance(error, SystemExit) else ''
        if isinstance(error, Error) and lines:
            remedy = ' Change the file: overrides come after it.'
        raise Error(f'{place}: {text}{remedy}') from error


@contextlib.contextmanager
def _importing_beside(path):
    """Puts the folder of the modules beside an experiment first in sys.path.

    Modules of a kept copy are not seen by what is imported elsewhere: another run may have others by their names.
    """
    folder = beside.root_of(path)
    own = {file.stem for file in folder.iterdir()} if folder.name == beside.IMPORTS else ()
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition('.')[0] in own}
    _make_siblings_importable(folder / 'experiments')
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition('.')[0] in own]:
            del sys.modules[name]
        sys.modules.update(hidden)


def _make_siblings_importable(folder):
    """Makes `experiments` the package of this folder, also where sys.path has another folder of that name."""
    loaded = sys.modules.get('experiments')
    if folder.is_dir() and (loaded is None or list(loaded.__path__) != [str(folder)]):
        for name in [n for n in sys.modules if n.partition('.')[0] == 'experiments']:
            del sys.modules[name]
        sys.modules['experiments'] = types.ModuleType('experiments')
        sys.modules['experiments'].__path__ = [str(folder)]
    importlib.invalidate_caches()


def typed(overrides):
    """Returns {dotted key: Text} of texts 'a.b=value'; a dict of overrides is returned as it is."""
    if isinstance(overrides, collections.abc.Mapping):
        return dict(overrides)
    changes = {}
    for text in [overrides] if isinstance(overrides, str) else overrides:
        key, equals, value = text.partition('=')
        if not equals or not key.strip():
            raise Error(f'{text!r} is no override; write it as key=value, e.g. {key.strip() or "model.depth"}=1.')
        if changes.get(key.strip(), value) != value:
            files.warn(f'{key.strip()} is set twice; {value} is used, and not {changes[key.strip()]}.')
        changes[key.strip()] = Text(value)
    return changes


def _within(key, changed):
    return any(key == other or key.startswith(f'{other}.') for other in changed)


def _origins(value, key=''):
    """Returns {dotted key: 'default' or 'file'} of every branch and leaf: 'default' is what the dataclasses declare."""
    origins = {}
    defaults = _defaults(value)
    for name, child in children(value).items():
        inner = join(key, name)
        if name in defaults and type(defaults[name]) is type(child) and defaults[name] == child:
            origins |= dict.fromkeys([inner, *(branch for branch, _ in branches(child, inner))], 'default')
        else:
            origins |= {inner: 'file'} | _origins(child, inner)
    return origins


def _defaults(value):
    fields = dataclasses.fields(value) if is_component(value) else ()
    return {f.name: default(f) for f in fields
            if f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING}
