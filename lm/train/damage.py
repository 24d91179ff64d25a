"""What is wrong with the files of a checkpoint, in words: which file, and what its reader found."""
import json
import os
import re
from typing import NamedTuple

from lm.config.annotations import message

DETAILS = re.compile(r' \[(?:tensorstore_|source )')  # where tensorstore says where in its own code a fault was
PLACE = re.compile(r'.*local file "([^"]*)"(?:: )?(.*)')  # the last of its chain of places
WRITTEN_AS_JSON = ('meta/metadata', 'state/_METADATA', 'state/array_metadatas/*')


class Fault(NamedTuple):
    """Why a checkpoint cannot be read. damage: whether its files are wrong, rather than out of reach for the moment."""

    text: str
    damage: bool


def words(folder, error):
    """Returns what is wrong with a checkpoint's folder of which a reader has raised `error`."""
    manifest = folder / 'state' / 'manifest.ocdbt'
    if not os.path.lexists(manifest):
        return f'{manifest} is missing'
    if isinstance(error, json.JSONDecodeError) and (path := _no_json(folder)):
        return f'{path} is no JSON ({error})'
    while error.__cause__:
        error = error.__cause__
    text = ' '.join(DETAILS.split(message(error).partition('. See full')[0])[0].split())
    place, cause = known.groups() if (known := PLACE.fullmatch(text)) else ('', '')
    if place and not os.path.lexists(place):
        return f'{place} is missing'
    return (f'{place}: {cause}' if os.path.isfile(place) and cause else text)[:300]


def _no_json(folder):
    """Returns the first file of a checkpoint that should be JSON and is not, None where all are."""
    for pattern in WRITTEN_AS_JSON:
        for path in sorted(folder.glob(pattern)):
            try:
                json.loads(path.read_bytes())
            except (ValueError, OSError):
                return path
    return None


def unreadable(folder):
    """Returns the Fault of the first file in a folder that the system does not let this process read, or None."""
    try:
        for path in sorted(folder.rglob('*')):
            if path.is_file():
                with path.open('rb') as file:
                    while file.read(2 ** 24):
                        pass
    except OSError as error:
        return Fault(f'{error.filename}: {error.strerror}', False)
    return None
