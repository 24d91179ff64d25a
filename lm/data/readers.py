"""Records out of files of plain text, JSON lines and JSON, plain or compressed.

Lines end at '\\n' alone and are of any length. A bad line is left out and reported; the lines around it are kept.
"""
import dataclasses
import json
from collections.abc import Iterator

from lm import config
from lm.data.sources import Document, Reject, examine
from lm.data.streams import blocks

_BOM = b'\xef\xbb\xbf'


def lines(file) -> Iterator[tuple[int, bytes | Reject]]:
    """Yields (number from 1, line without its '\\n'), or a Reject alone where a compressed file is not whole."""
    number, held = 1, []
    for block in blocks(file):
        if isinstance(block, Reject):
            yield number, block
            return
        first, *others = block.split(b'\n')
        held.append(first)
        for piece in others:
            yield number, b''.join(held)
            number, held = number + 1, [piece]
    if any(held):
        yield number, b''.join(held)


def read_lines(file, label) -> Iterator[Document | Reject]:
    """Yields each line as a Document or, so that they can be counted, as a Reject."""
    for number, line in lines(file):
        if isinstance(line, Reject):
            yield line
        else:
            yield examine(line.removeprefix(_BOM).removesuffix(b'\r'), label, f'{file.path}:{number}')


def read_text(file, label) -> Iterator[Document | Reject]:
    """Yields a Reject for each bad line, then the rest of the file as one Document."""
    data = _content(file)
    if isinstance(data, Reject):
        yield data
        return
    record = examine(data, label, file.path)
    if data and isinstance(record, Reject):
        faults = [(number, line, _fault(line)) for number, line in enumerate(data.split(b'\n'), 1)]
        yield from (Reject(fault, f'{file.path}:{number}', len(line)) for number, line, fault in faults if fault)
        kept = [line for _, line, fault in faults if not fault]
        if not any(kept):
            return
        record = examine(b'\n'.join(kept), label, file.path)
    yield record


def _content(file):
    """Returns all bytes of a file, without a byte-order mark, or the Reject that it is."""
    content = list(blocks(file))
    if content and isinstance(content[0], Reject):
        return content[0]
    return b''.join(content).removeprefix(_BOM)


def _fault(line):
    if b'\0' in line:
        return 'NUL character'
    return '' if _is_utf8(line) else 'not valid UTF-8'


def _is_utf8(data):
    try:
        data.decode('utf-8')
    except UnicodeDecodeError:
        return False
    return True


def read_jsonl(file, label, field) -> Iterator[Document | Reject]:
    """Yields the string at `field` of the object on each line; blank lines count for nothing.

    A file that is one list of objects, or one object on many lines, is read as `read_json` does.
    """
    first = next((text for _, line in lines(file)
                  if isinstance(line, bytes) and (text := line.removeprefix(_BOM).strip())), b'')
    if (first.startswith(b'[') or first == b'{') and not isinstance(values := _whole(file), ValueError):
        yield from _entries(values, label, field, file)
        return
    yield from _objects_of_lines(file, label, field)


def _objects_of_lines(file, label, field):
    for number, line in lines(file):
        if isinstance(line, Reject):
            yield line
        elif line.strip():
            record = _parse(line.removeprefix(_BOM), label, field, f'{file.path}:{number}')
            yield _sized(record, len(line))


def _sized(record, size):
    """Returns a record, of `size` bytes where it is a Reject of unknown size."""
    unsized = isinstance(record, Reject) and record.size is None
    return dataclasses.replace(record, size=size) if unsized else record


def read_json(file, label, field) -> Iterator[Document | Reject]:
    """Yields the string at `field` of each object in a .json file: one a line, those of one list, or a single one.

    Which of these it is shows in its content. Entries of a list are numbered from 1, as lines are. Raises config.Error
    where it is none of them.
    """
    start = _first_byte(file)
    if start not in (b'{', b'[', b''):
        raise config.Error(f'{file.path} holds no JSON objects: it begins with {start.decode("latin-1")!r}; '
                           'leave it out of the pattern, or rename it to end in .txt to read it as text.')
    if start == b'[' or (start == b'{' and not _object_a_line(file)):
        if not isinstance(values := _whole(file), ValueError):
            yield from _entries(values, label, field, file)
            return
        if start == b'[':
            line = getattr(values, 'lineno', 1)
            yield Reject('broken JSON', f'{file.path}:{line}', sum(map(len, blocks(file))))
            return
    yield from _objects_of_lines(file, label, field)


def _whole(file):
    """Returns the entries of the one JSON value in a file, a list of itself for an object; the ValueError where there
    is not one.
    """
    try:
        values = json.loads(_content(file).decode('utf-8'))
    except ValueError as error:
        return error
    except RecursionError as error:
        return ValueError(str(error))
    return values if isinstance(values, list) else [values]


def _entries(values, label, field, file):
    for number, value in enumerate(values, 1):
        yield _sized(_take(value, label, field, f'{file.path}:{number}'), len(json.dumps(value)))


def _first_byte(file):
    """Returns the first byte of a file that is no white space, b'' where there is none."""
    for block in blocks(file):
        if isinstance(block, bytes) and (text := block.removeprefix(_BOM).lstrip()):
            return text[:1]
    return b''


def _object_a_line(file):
    """Returns whether the first line of a file that begins with an object holds all of it."""
    first = next(line for _, line in lines(file) if line.strip())
    try:
        return isinstance(json.loads(first.removeprefix(_BOM).decode()), dict)
    except (ValueError, RecursionError):
        return False


def _parse(line, label, field, place):
    if b'\0' in line:
        return Reject('NUL character', place)
    try:
        value = json.loads(line.decode('utf-8'))
    except UnicodeDecodeError:
        return Reject('not valid UTF-8', place)
    except (ValueError, RecursionError):
        other = place.endswith(':1') and line.lstrip()[:1] not in (b'{', b'[')
        return Reject('broken JSON', f'{place} (begins {line[:30].decode()!r})' if other else place)
    return _take(value, label, field, place)


def _take(value, label, field, place):
    if not isinstance(value, dict):
        return Reject('no JSON object', place)
    if field not in value:
        names = sorted(value, key=lambda name: not isinstance(value[name], str))[:8]  # what may be the text comes first
        return Reject(f'no field {field!r}', f'{place} (has {", ".join(map(repr, names)) or "none"})')
    if value[field] is None:
        return Reject(f'field {field!r} is null', place)
    return examine(value[field], label, place)
