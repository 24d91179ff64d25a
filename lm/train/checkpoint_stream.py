"""Writes a checkpoint that checkpoint.py reads, and reads one, block by block: its parameters need not be in memory."""
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from lm import config
from lm.train import checkpoint, quiet

NUMBERS = 2 ** 24  # of a block, 64 MiB in float32


@dataclass(frozen=True)
class Streamed:
    """A float32 array of a shape whose values are read where they are written: read(index) -> values, index of slices.

    stacked: how many of its first axes a block takes one entry of.
    """

    shape: tuple
    read: Callable
    stacked: int = 0

    @property
    def size(self):
        return math.prod(self.shape)

    @property
    def block(self):
        """The shape of a block: one entry of the stacked axes, then as many rows as NUMBERS hold."""
        rows, *rest = self.shape[self.stacked:]
        return (*(1,) * self.stacked, max(1, min(rows, NUMBERS // math.prod(rest))), *rest)

    def indices(self):
        """Yields the slices of each block."""
        starts = [range(0, size, step) for size, step in zip(self.shape, self.block, strict=True)]
        for start in itertools.product(*starts):
            yield tuple(slice(first, min(first + step, size))
                        for first, step, size in zip(start, self.block, self.shape, strict=True))


class Handler(ocp.type_handlers.NumpyHandler):
    """Saves Streamed arrays, one block in memory at a time; `checksums` {name: number} are those of trees.checksums."""

    def __init__(self):
        super().__init__()
        self.checksums = {}

    async def serialize(self, values, infos, args=None):
        for value, info in zip(values, infos, strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info, use_ocdbt=info.is_ocdbt_checkpoint, global_shape=value.shape, local_shape=value.block,
                dtype=np.dtype(np.float32), process_index=0)
            array = await tensorstore.open(tensorstore.Spec(spec), create=True, open=True, context=info.ts_context)
            total = 0
            for index in value.indices():
                block = value.read(index)
                total = (total + _checksum(block, index, value.shape)) % 2 ** 32
                await array[index].write(block)
            self.checksums[info.name.replace('.', '/')] = total
        return []


def _checksum(block, index, shape):
    """Returns what a block adds to the checksum of its array, see trees.checksums."""
    if block.size > NUMBERS:  # in parts, for the memory of what is computed
        axis = next(axis for axis, size in enumerate(block.shape) if size > 1)
        first, half = index[axis].start, block.shape[axis] // 2
        spans = slice(first, first + half), slice(first + half, index[axis].stop)
        return sum(_checksum(part, (*index[:axis], span, *index[axis + 1:]), shape)
                   for part, span in zip(np.split(block, [half], axis), spans, strict=True)) % 2 ** 32
    place = sum(np.arange(part.start, part.stop, dtype=np.uint32).reshape(-1, *[1] * (len(shape) - axis - 1))
                * np.uint32(math.prod(shape[axis + 1:]) % 2 ** 32) for axis, part in enumerate(index))
    word = (block.view(np.uint32) ^ place * np.uint32(0x9E3779B9)) * np.uint32(0x85EBCA6B)
    return int(np.sum((word ^ word >> np.uint32(16)) * np.uint32(0xC2B2AE35), dtype=np.uint32))


def save(directory, step, params, meta):
    """Writes a checkpoint of a `step` and of `params`, a tree of Streamed, that checkpoint.restore reads."""
    folder, handler = Path(directory).absolute() / str(step), Handler()
    checkpoint.check_name(folder)
    registry = ocp.type_handlers.create_type_handler_registry(
        (Streamed, handler), (np.ndarray, ocp.type_handlers.NumpyHandler()))
    count = np.array(step, np.int32)
    with quiet.all_threads(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(type_handler_registry=registry)) as writer:
        writer.save(folder / checkpoint.STATE, ocp.args.PyTreeSave({'params': params, 'step': count}))
    meta = {**meta, 'checksums': handler.checksums}
    meta['checksum'] = config.fingerprint(meta)
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as writer:
        writer.save(folder / checkpoint.META, ocp.args.JsonSave(meta))


class Stored:
    """A parameter in a checkpoint, read part by part, or all at once where it was saved in one piece."""

    def __init__(self, directory, step, name):
        folder = Path(directory).absolute() / str(step)
        self.name, self.saved, self.total = name, checkpoint.checksums(folder).get(name), 0
        try:
            place = {'driver': 'ocdbt', 'base': f'file://{folder / checkpoint.STATE}', 'path': name.replace('/', '.')}
            self.array = tensorstore.open({'driver': 'zarr', 'kvstore': place}, open=True).result()
            if self.array.chunk_layout.read_chunk.shape[0] == self.array.shape[0]:
                self.array = self.array.read().result()
        except ValueError as error:
            raise config.Error(f'{name} of {folder} cannot be read: {config.first_line(error)[:300]}; convert another '
                               'step.') from error

    def read(self, index):
        """Returns values of a part, by slices or numbers; each part once, then `verify` compares the checksum of all.
        """
        spans = tuple(slice(*part.indices(size)) if isinstance(part, slice) else slice(part, part + 1)
                      for part, size in zip(index, self.array.shape, strict=True))
        block = self.array[spans]
        block = np.ascontiguousarray(block if isinstance(block, np.ndarray) else block.read().result())
        self.total = (self.total + _checksum(block, spans, self.array.shape)) % 2 ** 32
        return block[tuple(slice(None) if isinstance(part, slice) else 0 for part in index)]

    def verify(self):
        """Raises config.Error unless the parts that were read are what was saved."""
        if self.saved is not None and self.saved != self.total:
            raise config.Error(f'{self.name} is not what was saved, by its checksum; convert another step.')
