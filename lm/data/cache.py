"""Token caches: each source encoded once, into a file that every later run maps into memory.

A cache is the directory `root/<hash>`, named by what its source and its encoder are: `tokens.bin` (uint16 or uint32),
`offsets.npy` (int64 [documents + 1]), `report.json`, and the checksums of these three, with which they are compared
wherever they are opened. While it is written there is `root/<hash>.partial`, which a later build continues;
`root/<hash>.lock` lets one process at a time build it.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import sys
import time

import numpy as np

from lm import config
from lm.config import checksums, files, paths
from lm.data import rejects as rejected
from lm.data import shards
from lm.data.identity import digest
from lm.data.sources import Document
from lm.data.streams import File

_VERSION = 3  # caches have checksums
_LARGE = 2 ** 26  # bytes of tokens that are compared with their checksum in the background
_PLACES = 5
_REPORT = {'source': str, 'documents': int, 'bytes': int, 'lost': int, 'tokens': int, 'bytes_per_token': float,
           'vocabulary': int, 'tokenizer': str, 'dtype': str, 'rejects': dict, 'unchecked': [str], 'seconds': float}
root = paths.caches


@dataclasses.dataclass(frozen=True, eq=False)
class Cache:
    """The tokens of one source, as they lie on disk: document i is tokens[offsets[i]:offsets[i + 1]].

    `report` has 'documents', 'bytes' (of their text), 'lost' (how many of them in pieces that are not decoded to their
    text again), 'tokens', 'bytes_per_token', 'vocabulary', 'tokenizer' (its fingerprint), 'seconds', and 'rejects':
    {reason: {'count': how many, 'places': the first few, as file:line, 'bytes': how much text, 'unsized': how many of
    unknown size}}, and 'unchecked', the names of compressed files without a checksum. `unverified` has the (path,
    checksum) of what has not been compared yet.
    """
    directory: pathlib.Path
    label: str
    tokens: np.memmap
    offsets: np.ndarray
    report: dict
    unverified: tuple = ()

    @property
    def rejected(self):
        """The share of the source that was rejected: of its bytes, or of its documents where that of the rejects whose
        size is unknown is larger.
        """
        rejects = self.report['rejects'].values()
        lost, unsized = (sum(reject[name] for reject in rejects) for name in ('bytes', 'unsized'))
        return max(lost / (lost + self.report['bytes']), unsized / (unsized + self.report['documents']))

    def document(self, number):
        """Returns the ids of one document, its end token included."""
        return self.tokens[self.offsets[number]:self.offsets[number + 1]]

    def within(self, start, stop):
        """Yields (document, first of its tokens, count) of the pieces of documents in tokens [start, stop)."""
        first, last = np.searchsorted(self.offsets, (start, stop - 1), 'right') - 1
        for number in range(first, last + 1):
            begin, end = self.offsets[number:number + 2].clip(start, stop).tolist()
            if begin < end:
                yield number, begin - int(self.offsets[number]), end - begin


def prepare(source, tokenizer, root, train=None):
    """Returns (encoder, [Cache for each leaf of `source`]), built under `root` where they are missing.

    `train` is the source that the tokenizer learns from, `source` itself by default. Any other source is encoded
    exactly, also where the tokenizer samples; so is everything by the encoder returned.
    """
    parts = source.parts()
    encoder = fit(source if train is None else train, tokenizer, root)
    chosen = encoder if train is None or train == source else encoder.exact()
    return encoder.exact(), [build(leaf, chosen, root) for leaf, _ in parts]


def fit(source, tokenizer, root):
    """Returns the Encoder that `tokenizer` makes of the documents of `source`, kept in its `home`."""
    directory = home(source, tokenizer, root)
    with _locked(directory.parent, directory.name):
        try:
            return tokenizer.fit(_texts(source), directory)
        except checksums.Damaged as fault:
            _remove(directory, fault)
            return tokenizer.fit(_texts(source), directory)


def _remove(directory, fault):
    """Removes a directory of lm's own in which something is damaged; it is made again."""
    print(f'lm: {fault.fact}; it is made again.', file=sys.stderr, flush=True)
    shutil.rmtree(directory)


def home(source, tokenizer, root):
    """Returns the directory, `root/tokenizer-<hash>`, from which a tokenizer that learned from `source` can be loaded.

    There may be no such directory: a tokenizer that learns nothing keeps nothing.
    """
    path = paths.locate(tokenizer.source_file) if tokenizer.source_file else ''
    origin = digest([File(path)]) if os.path.isfile(path) else tokenizer.source_file or source.fingerprint()
    return pathlib.Path(root) / f'tokenizer-{config.fingerprint([_VERSION, tokenizer, origin])}'


def _texts(source):
    rejects, empty = {}, True
    for document in _documents(source, rejects):
        empty = False
        yield document.text
    if empty:
        raise _emptiness(source, rejects)


def _documents(source, rejects):
    """Yields the documents of `source`, and writes what it rejects into the dict `rejects`, in the form of a report."""
    for record in source.records():
        if isinstance(record, Document):
            yield record
        else:
            reason = rejects.setdefault(record.reason, {'count': 0, 'places': [], 'bytes': 0, 'unsized': 0})
            reason['count'] += 1
            reason['bytes'] += record.size or 0
            reason['unsized'] += record.share * (record.size is None)
            reason['places'] += [record.place] * (len(reason['places']) < _PLACES)


def _emptiness(source, rejects):
    if not rejects:
        return config.Error(f'{source.label} has no text: no document is left; '
                            'widen its Cut or Pick, or choose other files.')
    return config.Error(f'{source.label} has no usable text ({rejected.counts(rejects)}); '
                        f'{rejected.remedy(rejects)}, or choose others.')


def summary(caches):
    """Returns in one line how many documents and bytes some caches hold, and what was rejected, by reason."""
    documents, size = (sum(part.report[name] for part in caches) for name in ('documents', 'bytes'))
    reasons = {}
    for reason, reject in (pair for part in caches for pair in part.report['rejects'].items()):
        reasons[reason] = reasons.get(reason, 0) + reject['count']
    rejected = ', '.join(f'{count:,} x {reason}' for reason, count in reasons.items())
    unchecked = sum(len(part.report['unchecked']) for part in caches)
    return (f'{documents:,} documents, {size:,} bytes, ' +
            (f'rejected: {rejected} (`lm data` shows where)' if reasons else 'none rejected') +
            f'; no checksum in {unchecked:,} files' * bool(unchecked))


def build(source, encoder, root, workers=None):
    """Returns the Cache of a leaf source, written under `root` by `workers` threads (one a core) if it is not there.

    Encoders release the GIL, so that threads use every core. A build that was killed is continued, a second process
    waits for the first, and a damaged cache is built again; the bytes are the same in any case. Raises config.Error
    where the source has no usable document or the directory cannot be written.
    """
    name = config.fingerprint([_VERSION, source.fingerprint(), encoder.fingerprint()])
    directory = pathlib.Path(root) / name
    try:
        return dataclasses.replace(open(directory), label=source.label)
    except checksums.Damaged:
        pass  # or missing
    with _locked(pathlib.Path(root), name):
        try:
            cached = open(directory)
        except checksums.Damaged as fault:
            if os.path.lexists(directory):
                _remove(directory, fault)
            _build(source, encoder, directory, workers or len(os.sched_getaffinity(0)))
            cached = open(directory)
    return dataclasses.replace(cached, label=source.label)


def _build(source, encoder, directory, workers):
    began, rejects = time.perf_counter(), {}
    partial = directory.with_name(f'{directory.name}.partial')
    ready = partial / 'ready'
    shutil.rmtree(ready, ignore_errors=True)
    ready.mkdir(parents=True)
    encoded = shards.encode(shards.chunks(_documents(source, rejects), encoder), encoder, partial, workers)
    totals = shards.merge(list(_with_progress(encoded, source.label)), ready)
    if not totals['tokens']:
        raise _emptiness(source, rejects)
    report = {'source': source.label, **totals, 'bytes_per_token': totals['bytes'] / totals['tokens'],
              'vocabulary': encoder.size, 'tokenizer': encoder.fingerprint(), 'dtype': encoder.dtype.name,
              'rejects': rejects, 'unchecked': source.unchecked(), 'seconds': round(time.perf_counter() - began, 3)}
    files.replace(ready / 'report.json', json.dumps(report, indent=1))
    checksums.seal(ready)
    ready.rename(directory)
    shutil.rmtree(partial, ignore_errors=True)


def _with_progress(paths, label):
    """Returns `paths`, with a progress line on a terminal."""
    from rich import console, progress
    terminal = console.Console(stderr=True)
    return progress.track(paths, f'encoding {label}', total=None, console=terminal, transient=True,
                          disable=not terminal.is_terminal)


def open(directory):
    """Returns the Cache in a directory; raises checksums.Damaged where a file is not as it was written.

    More than 64 MiB of tokens are left `unverified`: only their size is compared.
    """
    directory = pathlib.Path(directory)
    remedy = f'remove {directory}, and it is built again.'
    stored = directory / 'tokens.bin'
    large = os.path.isfile(stored) and os.path.getsize(stored) > _LARGE
    sums = checksums.verify(directory, (stored.name, 'offsets.npy', 'report.json'), remedy, (stored.name,) * large)
    report = files.read_json(directory / 'report.json', _REPORT, remedy)
    return Cache(directory, report['source'], np.memmap(stored, report['dtype'], mode='r'),
                 np.load(directory / 'offsets.npy'), report, ((stored, sums[stored.name]),) * large)


@contextlib.contextmanager
def _locked(root, name):
    """Holds the file lock of `name`, one process at a time; the system releases it however the process ends."""
    try:
        files.make_directory(root)
        with (root / f'{name}.lock').open('w') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f'waiting for another process that builds {root / name}', file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        if not f'{error.filename or root}/'.startswith(f'{root}/') and not str(root).startswith(f'{error.filename}/'):
            raise
        reason = 'it is a file' if isinstance(error, FileExistsError) else error.strerror or error
        raise config.Error(f'cannot write the token cache under {root}: {reason}; '
                           'make room there, or choose another place with --cache or $LM_CACHE.') from error
