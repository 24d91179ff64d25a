"""Text files written atomically, and imports of modules that may be missing."""
import importlib
import os

from lm.config.annotations import Error


def replace(path, content):
    """Writes a text or bytes to a Path atomically: a reader sees the old content or the new, never half of it."""
    temporary = path.with_name(f'.{path.name}.{os.getpid()}')
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, path)


def require(module, purpose, package):
    """Returns the imported `module`; raises Error naming `package` to install where it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Error(f'{purpose} needs the module {error.name or module}, which is not installed; '
                    f'run: pip install {package}') from error
