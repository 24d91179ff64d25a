"""Batches of a run, placed on its mesh."""
from lm.parallel import sharding


def serve(stream, mesh, offset, step):
    """Returns the batch of a step (from 0) on a mesh; the data is ahead of the step by `offset` batches.

    Each process reads the rows of its own devices alone.
    """
    return sharding.put(stream.batch_at(step + offset, sharding.rows(stream.batch, mesh)), mesh, stream.batch)
