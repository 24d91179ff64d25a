"""Documents to token shards by several threads, and shards to one file.

A shard holds the tokens of some 4 MB of text. A checksum of that text is part of its name, so that a build that
continues another one reuses the shards of text that is still the same, and no others.
"""

import collections
import concurrent.futures
import itertools
import os
import zlib

import numpy as np

_CHARACTERS = 2 ** 22
_HEADROOM = 2  # chunks read ahead, so that no thread waits for the reader


def chunks(documents, encoder):
    """Yields lists of (piece of a document, whether it is the last), of some 4 MB each, that add up to `documents`."""
    chunk, size = [], 0
    for document in documents:
        *most, last = encoder.split(document.text)
        for piece, ends in [*((piece, False) for piece in most), (last, True)]:
            chunk.append((piece, ends))
            size += len(piece)
            if size >= _CHARACTERS:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def encode(chunks, encoder, folder, workers):
    """Yields the path of a shard in `folder` for each of `chunks`, in order; those already there are not made again."""
    with concurrent.futures.ThreadPoolExecutor(workers, 'encode') as executor:
        numbered, pending = enumerate(chunks), collections.deque()
        try:
            for number, chunk in itertools.chain(itertools.islice(numbered, workers + _HEADROOM), numbered):
                pending.append(executor.submit(_encode_chunk, number, chunk, encoder, folder))
                if len(pending) > workers + _HEADROOM:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            executor.shutdown(cancel_futures=True)


def _encode_chunk(number, chunk, encoder, folder):
    stored = [piece.encode('utf-8') for piece, _ in chunk]
    checksum = 0
    for content in stored:
        checksum = zlib.crc32(content, checksum)
    path = folder / f'{number:07}-{checksum:08x}.npz'
    if not _whole(path):
        encoded = encoder.encode_segments([piece for piece, _ in chunk])
        tokens, ends = _joined(chunk, encoded, encoder)
        lost = sum(len(content) for content, (piece, _), ids in zip(stored, chunk, encoded, strict=True)
                   if encoder.decode(ids) != piece)
        temporary = path.with_suffix('.tmp')
        with temporary.open('wb') as file:
            np.savez(file, tokens=tokens, ends=ends, bytes=sum(map(len, stored)), lost=lost)
        temporary.rename(path)
    return path


def _whole(path):
    """Returns whether a shard that was written earlier can be read; the checksums in it are compared."""
    try:
        with np.load(path) as shard:
            return {'tokens', 'ends', 'bytes', 'lost'} <= {name for name in shard if shard[name] is not None}
    except Exception:  # what zip files and arrays raise that are damaged has many types
        return False


def _joined(chunk, encoded, encoder):
    """Returns the `encoded` pieces of a chunk as one, and the ends of the documents that end in it, int64 [documents].
    """
    end = [] if encoder.eos is None else [np.array([encoder.eos], encoder.dtype)]
    arrays, ends, size = [], [], 0
    for (_, last), ids in zip(chunk, encoded, strict=True):
        arrays += [ids, *end] if last else [ids]
        size += ids.size + len(end) * last
        if last:
            ends.append(size)
    return encoder.join(arrays), np.array(ends, np.int64)


def merge(paths, folder):
    """Writes `tokens.bin` and `offsets.npy` into `folder`; returns the counts of documents, bytes and tokens, and the
    bytes 'lost' in pieces that do not decode to their text.
    """
    offsets, size, lost, tokens = [np.zeros(1, np.int64)], 0, 0, 0
    with (folder / 'tokens.bin').open('wb') as file:
        for path in paths:
            with np.load(path) as shard:
                shard['tokens'].tofile(file)
                offsets.append(shard['ends'] + tokens)
                tokens += shard['tokens'].size
                size += int(shard['bytes'])
                lost += int(shard['lost'])
        file.flush()
        os.fsync(file.fileno())
    offsets = np.concatenate(offsets)
    np.save(folder / 'offsets.npy', offsets)
    return {'documents': offsets.size - 1, 'bytes': size, 'lost': lost, 'tokens': tokens}
