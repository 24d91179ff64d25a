"""What files and modules a run depends on: text written at once, modules that may be missing."""
import importlib
import os

from lm.config.annotations import Error


def replace(path, text):
    """Writes a text file whole: who reads it sees the text before or this one."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)


def require(module, purpose, package):
    """Returns the imported `module`; raises Error naming `package` to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Error(f'{purpose} needs the module {error.name or module}, which is not installed; '
                           f'run: pip install {package}') from error
