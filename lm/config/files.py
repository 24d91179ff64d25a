"""Text files written atomically, and imports of modules that may be missing."""
import importlib
import os

from lm.config.annotations import Error


def replace(path, text):
    """Writes a text file atomically: a reader sees the old text or the new one, never a part."""
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
