"""Writes a checkpoint that checkpoint.py reads, block by block, of parameters that need not be in memory."""
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
            total = np.uint32(0)
            for index in value.indices():
                block = value.read(index)
                total += _checksum(block, index, value.shape)
                await array[index].write(block)
            self.checksums[info.name.replace('.', '/')] = int(total)
        return []


def _checksum(block, index, shape):
    """Returns what a block adds to the checksum of its array, see trees.checksums."""
    place = sum(np.arange(part.start, part.stop, dtype=np.uint32).reshape(-1, *[1] * (len(shape) - axis - 1))
                * np.uint32(math.prod(shape[axis + 1:]) % 2 ** 32) for axis, part in enumerate(index))
    word = (block.view(np.uint32) ^ place * np.uint32(0x9E3779B9)) * np.uint32(0x85EBCA6B)
    return np.sum((word ^ word >> np.uint32(16)) * np.uint32(0xC2B2AE35), dtype=np.uint32)


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
