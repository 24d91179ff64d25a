"""What a run was made from, its config.json: the configuration, the command, the commit and the versions."""
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

from lm import config
from lm.config import files

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'sentencepiece')


def write(path, settings, **more):
    """Writes the config.json of a run to a Path: its Config, what started it, and `more`."""
    about = {'config': config.dump(settings), 'command': sys.argv, **more, 'commit': _commit(),
             'versions': {'python': sys.version.split()[0], **_versions()}}
    files.replace(path, files.sealed(json.dumps(about, indent=1)) + '\n')


def _commit():
    """Returns the git commit of the code, '+' behind it where files differ from it, or '' outside git."""
    here = Path(__file__).parent

    def git(*words):
        return subprocess.run(['git', '-C', str(here), *words], capture_output=True, text=True).stdout.strip()
    try:
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '--untracked-files=no') else '')
    except FileNotFoundError:
        return ''


def _versions():
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = 'absent'
    return versions
