"""Tensors that safetensors hold in few bits, each in parts: MXFP4 as of gpt-oss, FP8 in blocks as of DeepSeek-V3."""
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import ml_dtypes
import numpy as np

from lm import config

HALF = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]  # by the three bits behind the sign
VALUES = np.array(HALF + [-value for value in HALF], np.float32)
DTYPES = {'U8': np.uint8, 'F8_E4M3': ml_dtypes.float8_e4m3fn, 'F32': np.float32}  # of parts


class Quantised(NamedTuple):
    """A tensor of a shape: read(*arrays) gives its values from the tensors `parts`."""

    shape: tuple
    parts: tuple
    read: Callable


def tensors(hf, shapes):
    """Returns {name: Quantised} of what a checkpoint with tensors of {name: shape} holds in parts, by its config.json.

    Raises config.Error where that has a method which is not read.
    """
    settings = hf.get('quantization_config') or {}
    match settings.get('quant_method'):
        case None:
            return {}
        case 'mxfp4':
            return {name: Quantised((*experts, 32 * blocks, rows), (f'{name}_blocks', f'{name}_scales'), mxfp4)
                    for name, (*experts, rows, blocks) in _with(shapes, '_scales')}
        case 'fp8':
            read = partial(fp8, size=settings.get('weight_block_size'))
            return {name: Quantised(shapes[name], (name, f'{name}_scale_inv'), read)
                    for name, _ in _with(shapes, '_scale_inv')}
        case method:
            raise config.Error(f'config.json has quant_method={method}, which is not read; those that are: fp8, mxfp4. '
                               'Convert the checkpoint in bfloat16.')


def _with(shapes, ending):
    """Returns [(name, shape of its scales)] of the tensors that have scales by this ending."""
    return [(name.removesuffix(ending), shape) for name, shape in shapes.items() if name.endswith(ending)]


def mxfp4(blocks, scales):
    """Returns values [E D F] of blocks [E F D/32 16] of bytes, the lower half first, and scales [E F D/32] of bytes.

    32 numbers of 4 bits are under one power of two (OCP Microscaling Formats 1.0). In bfloat16, which holds them
    exactly.
    """
    values = np.empty((len(blocks), 32 * blocks.shape[2], blocks.shape[1]), ml_dtypes.bfloat16)
    for own, block, scale in zip(values, blocks, scales, strict=True):  # for the memory of what is between
        halves = np.stack([block & 15, block >> 4], -1).reshape(*block.shape[:2], 32)
        own[...] = np.ldexp(VALUES[halves], scale.astype(np.int32)[..., None] - 127).reshape(len(block), -1).T
    return values


def fp8(weights, scales, *, size):
    """Returns float32 values of weights [R C], each block of `size` [r c] times its own of scales [R/r C/c]."""
    values = weights.astype(np.float32)
    for number, scale in enumerate(scales):
        values[number * size[0]:(number + 1) * size[0]] *= np.repeat(scale, size[1])[:values.shape[1]]
    return values
