"""Records out of parquet files, plain or compressed as a whole."""
import functools
import importlib
import io
from collections.abc import Iterator

from lm.config.files import require
from lm.data.sources import Document, Reject, examine
from lm.data.streams import broken, decompressed

_ROWS = 1024
_INTEGER = 0x15  # in Thrift's compact protocol: the field after the last one, an i32


def read(file, label, field) -> Iterator[Document | Reject]:
    """Yields the value at column `field` of each row, rows numbered from 1.

    The column is read to its end, with the checksums that its pages have, once before the first of its rows counts;
    where that fails, or there is no such column, the whole file is one Reject.
    """
    if fault := broken(file) or _fault(file, field, file.stamp()):
        yield fault
        return
    arrow = importlib.import_module('pyarrow')
    number = 0
    with file.open() as raw:
        for batch in _table(file, raw).iter_batches(batch_size=_ROWS, columns=[field]):
            for scalar in _as_bytes(batch.column(0), arrow):
                number += 1
                yield examine(scalar.as_py(), label, f'{file.path}:{number}')


@functools.lru_cache(2 ** 14)
def _fault(file, field, _):
    """Returns the Reject of a file whose column `field` cannot be read to its end; None where it can."""
    number = 0
    with file.open() as raw, file.readable():
        try:
            table = _table(file, raw)
            names, groups = table.schema_arrow.names, [table.metadata.row_group(i) for i in range(table.num_row_groups)]
            if field not in names:
                place = f'{file.path} (has {", ".join(map(repr, names[:8]))})'
                return Reject(f'no field {field!r}', place, sum(group.total_byte_size for group in groups))
            for batch in table.iter_batches(batch_size=_ROWS, columns=[field]):
                number += batch.num_rows
        except Exception as error:  # what pyarrow raises for a damaged file has many types
            if getattr(error, 'errno', None) is not None or isinstance(error, ModuleNotFoundError):
                raise
            return Reject('broken parquet file', f'{file.path}:{number + 1}', file.size())
    return None


def _table(file, raw):
    parquet = require('pyarrow.parquet', 'reading .parquet', 'pyarrow')
    compression = file.formats()[1]
    stored = io.BytesIO(decompressed(raw, compression).read()) if compression else raw
    return parquet.ParquetFile(stored, page_checksum_verification=True)


def checked(file, field):
    """Returns whether the first page of column `field` has a checksum, which writers leave out unless asked.

    It counts as one that has where there is no page to be read.
    """
    if _fault(file, field, file.stamp()):
        return True
    with file.open() as raw, file.readable():
        metadata = _table(file, raw).metadata
        if not metadata.num_row_groups:
            return True
        paths = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        # Of no other column: the process ends where pyarrow looks at one whose metadata is damaged (26.0.1).
        column = metadata.row_group(0).column(next(n for n, path in enumerate(paths) if path.split('.')[0] == field))
        raw.seek(min(filter(None, (column.dictionary_page_offset, column.data_page_offset))))
        return _has_checksum(raw.read(32))


def _has_checksum(header):
    """Returns whether a page header has `crc`, an i32 behind three others (type and two sizes), each a varint."""
    place = 0
    for _ in range(3):
        if header[place] != _INTEGER:
            return False
        place = next(end for end in range(place + 1, len(header)) if header[end] < 0x80) + 1
    return header[place] == _INTEGER


def _as_bytes(column, arrow):
    """Returns a column of strings as bytes: parquet does not promise that they are UTF-8."""
    text = arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type)
    return column.cast(arrow.large_binary()) if text else column
