"""MXFP4, as gpt-oss has its experts: 32 numbers of 4 bits under one power of two (OCP Microscaling Formats 1.0)."""
import ml_dtypes
import numpy as np

HALF = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # by the three bits behind the sign
VALUES = np.array(HALF + [-value for value in HALF], np.float32)
BLOCKS, SCALES = '_blocks', '_scales'


def packed(shapes):
    """Returns {name: shape [E D F]} of what tensors of these {name: shape} hold in blocks [E F D/32 16], and scales."""
    stems = [name.removesuffix(BLOCKS) for name in shapes if name.endswith(BLOCKS)]
    return {stem: (*experts, 32 * blocks, rows) for stem in stems if stem + SCALES in shapes
            for *experts, rows, blocks, _ in [shapes[stem + BLOCKS]]}


def dequantised(blocks, scales):
    """Returns values [E D F] of blocks [E F D/32 16] of bytes, the lower half first, and scales [E F D/32] of bytes.

    In bfloat16, which holds them exactly.
    """
    values = np.empty((len(blocks), 32 * blocks.shape[2], blocks.shape[1]), ml_dtypes.bfloat16)
    for own, block, scale in zip(values, blocks, scales, strict=True):  # for the memory of what is between
        halves = np.stack([block & 15, block >> 4], -1).reshape(*block.shape[:2], 32)
        own[...] = np.ldexp(VALUES[halves], scale.astype(np.int32)[..., None] - 127).reshape(len(block), -1).T
    return values
