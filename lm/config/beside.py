"""The Python files beside an experiment that it imports: found in the source, and kept with a run. Executes nothing."""
import ast
import os
import pathlib
import sys
import sysconfig

from lm.config import files
from lm.config.annotations import Error, is_component
from lm.config.overrides import branches
from lm.config.values import EXPERIMENT

IMPORTS = 'experiment.imports'  # beside a kept experiment.py


def root_of(file):
    """Returns the folder from which an experiment imports: the parent of the `experiments` folder that holds it, else
    its own; of a kept copy IMPORTS, if there is one.
    """
    folder = pathlib.Path(file).resolve().parent
    if (folder / IMPORTS).is_dir():
        return folder / IMPORTS
    return next((up.parent for up in (folder, *folder.parents) if up.name == 'experiments'), folder)


def check(experiment):
    """Raises Error for a component of an Experiment whose class another process could not import.

    It can where the class is in a file beside the experiment, installed, or on PYTHONPATH.
    """
    file, root = experiment.file, root_of(experiment.file)
    places = [*sysconfig.get_paths().values(), *os.environ.get('PYTHONPATH', '').split(os.pathsep)]
    homes = [root, pathlib.Path(__file__).parents[1], *(pathlib.Path(place).resolve() for place in places if place)]
    for key, value in branches(experiment.config):
        module = sys.modules.get(type(value).__module__)
        own = type(value).__module__.partition('@')[0] == EXPERIMENT
        if is_component(value) and not own and not any(_file(module, file).is_relative_to(home) for home in homes):
            raise Error(f'{key} is a {type(value).__name__} of {_file(module, file)}, which would not be kept with the '
                        f'run; put that file beside {file.name}, install it, or set PYTHONPATH.')


def keep(experiment, directory):
    """Writes an Experiment's file into a directory, as experiment.py, and what it imports from beside it into IMPORTS.
    """
    file = experiment.file
    copies = {f'{IMPORTS}/{relative}': path for relative, path in imported(file).items()}
    for name, path in {'experiment.py': file, **copies}.items():
        files.make_directory((directory / name).parent)
        files.replace(directory / name, path.read_bytes())


def _file(module, default):
    return pathlib.Path(getattr(module, '__file__', None) or default).resolve()


def imported(file):
    """Returns {path under `root_of(file)`: Path} of what an experiment imports from there, directly or through others.

    Modules of lm are left out.
    """
    root = root_of(file)
    known, queue = {}, [pathlib.Path(file).resolve()]
    while queue:
        for name in _modules(queue.pop(), root):
            stem = root.joinpath(*name.split('.'))
            for path in (stem.with_suffix('.py'), stem / '__init__.py'):
                relative = str(path.relative_to(root))
                if name.partition('.')[0] != 'lm' and path.is_file() and relative not in known:
                    known[relative] = path
                    queue.append(path)
    return known


def _modules(path, root):
    """Yields the dotted names of the modules and packages that a file may import, and of what they hold."""
    package = path.parent.relative_to(root).parts if path.is_relative_to(root) else ()
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):  # a file that the experiment never comes to import
        return
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[:len(package) - node.level + 1]] if node.level else []
            base += node.module.split('.') if node.module else []
            names = ['.'.join([*base, alias.name]) for alias in node.names]
        for name in names:
            parts = name.split('.')
            yield from ('.'.join(parts[:length]) for length in range(1, len(parts) + 1))
