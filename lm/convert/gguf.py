"""The GGUF format of llama.cpp: metadata, and tensors in blocks of few bits, dequantised as its Python package does.

https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; blocks as in ggml-common.h. Reading 49,152 tokens and their
merges takes a tenth of a second here and ten in the package `gguf`.
"""
import math
import os
import struct

import ml_dtypes
import numpy as np

from lm import config

NUMBERS = ('B', 'b', 'H', 'h', 'I', 'i', 'f', '?', None, None, 'Q', 'q', 'd')  # by type of a value in the metadata
STRING, ARRAY = 8, 9
K = 256  # numbers in a block of the kinds that end in _K


class Reader:
    """The bytes of a GGUF file read one value after the other; past their end the file is truncated."""

    def __init__(self, path):
        self.path, self.size = path, os.path.getsize(path)
        with open(path, 'rb') as file:
            self.bytes, self.offset = np.memmap(file, np.uint8, 'r') if self.size else np.zeros(0, np.uint8), 0
        self.view = memoryview(self.bytes)

    def check(self, end):
        """Raises config.Error unless the file has that many bytes."""
        if end > self.size:
            raise config.Error(f'{self.path} is truncated: {self.size} bytes of {end} or more; fetch it again.')

    def number(self, kind):
        value = self.numbers(kind, 1)
        return value[0]

    def numbers(self, kind, count):
        start, self.offset = self.offset, self.offset + struct.calcsize(f'<{kind}') * count
        self.check(self.offset)
        return struct.unpack_from(f'<{count}{kind}', self.view, start)

    def string(self):
        size = self.number('Q')
        start, self.offset = self.offset, self.offset + size
        self.check(self.offset)
        return str(self.view[start:self.offset], 'utf-8', 'replace')

    def value(self, kind):
        """Returns a value of the metadata: a number, a string or a list."""
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, count = self.number('I'), self.number('Q')
            self.check(self.offset + count)
            if inner in (STRING, ARRAY):
                return [self.value(inner) for _ in range(count)]
            return list(self.numbers(self._letter(inner), count))
        return self.number(self._letter(kind))

    def _letter(self, kind):
        if kind >= len(NUMBERS) or NUMBERS[kind] is None:
            raise config.Error(f'{self.path} is damaged: its metadata has a value of type {kind}; fetch it again.')
        return NUMBERS[kind]


def contents(path):
    """Returns (metadata, {name: (shape, type, array uint8 [bytes])}) of a GGUF file; shapes are [rows ... columns].

    Raises config.Error where it is none, is truncated, or has a type of tensor that is not read.
    """
    reader = Reader(path)
    if bytes(reader.bytes[:4]) != b'GGUF':
        raise config.Error(f'{path} is no GGUF file; give one, or a Hugging Face directory.')
    reader.offset = 4
    version = reader.number('I')
    if version not in (2, 3):
        raise config.Error(f'{path} is GGUF of version {version}; those of versions 2 and 3 are read.')
    tensors, values = reader.numbers('Q', 2)
    metadata = {}
    for _ in range(values):
        name = reader.string()
        metadata[name] = reader.value(reader.number('I'))
    entries = []
    for _ in range(tensors):
        name = reader.string()
        shape = reader.numbers('Q', reader.number('I'))[::-1]
        entries.append((name, shape, *reader.numbers('I', 1), *reader.numbers('Q', 1)))
    align = metadata.get('general.alignment', 32)
    start = -(-reader.offset // align) * align
    stored = {}
    for name, shape, kind, offset in entries:
        if kind not in KINDS:
            names = ', '.join(known.__name__ for known, *_ in KINDS.values())
            raise config.Error(f'{name} in {path} is of the type {kind} of GGUF, which is not read; those that are: '
                               f'{names}.')
        _, numbers, size = KINDS[kind]
        first = start + offset
        last = first + math.prod(shape) // numbers * size
        reader.check(last)
        stored[name] = (shape, kind, reader.bytes[first:last])
    return metadata, stored


def dequantised(shape, kind, stored):
    """Returns the float array of a tensor stored as bytes of a type; plain ones are mapped from the file."""
    read, numbers, size = KINDS[kind]
    if numbers == 1:
        return read(stored).reshape(shape)
    values = np.empty((math.prod(shape) // numbers, numbers), np.float32)
    blocks = stored.reshape(-1, size)
    for start in range(0, len(blocks), 2 ** 16):  # for the memory of what is between
        values[start:start + 2 ** 16] = read(blocks[start:start + 2 ** 16]).reshape(-1, numbers)
    return values.reshape(shape)


def F32(stored):
    return stored.view(np.float32)


def F16(stored):
    return stored.view(np.float16)


def BF16(stored):
    return stored.view(ml_dtypes.bfloat16)


def _half(blocks, place):
    """Returns the float16 at a byte of each block, as float32 [blocks 1]."""
    return np.ascontiguousarray(blocks[:, place:place + 2]).view(np.float16).astype(np.float32)


def _nibbles(bytes):
    """Returns the 4-bit numbers of bytes [... n], the low ones first, as float32 [... 2n]."""
    return np.concatenate([bytes & 15, bytes >> 4], -1).astype(np.float32)


def Q4_0(blocks):
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:]) - 8)


def Q4_1(blocks):
    return _half(blocks, 0) * _nibbles(blocks[:, 4:]) + _half(blocks, 2)


def Q8_0(blocks):
    return _half(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32)


def Q4_K(blocks):
    """8 groups of 32 numbers, with a scale and a minimum of 6 bits each, in units of the block's own."""
    packed = blocks[:, 4:16]
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([low & 63, (high & 15) | (low >> 2 & 48)], 1)
    least = np.concatenate([middle & 63, (high >> 4) | (middle >> 2 & 48)], 1)
    numbers = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return ((_half(blocks, 0) * scale.astype(np.float32))[..., None] * numbers
            - (_half(blocks, 2) * least.astype(np.float32))[..., None])


def Q6_K(blocks):
    """16 groups of 16 numbers of 6 bits, the upper two of which are stored apart, with a scale of 8 bits each."""
    low, high = blocks[:, :128].reshape(-1, 2, 1, 64), blocks[:, 128:192].reshape(-1, 2, 1, 32)
    low = (low >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1) & 15).reshape(-1, 2, 4, 32)
    high = high >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1) & 3
    numbers = (low | high << 4).astype(np.int8) - np.int8(32)
    scale = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32) * _half(blocks, 208)
    return scale[..., None] * numbers.reshape(-1, 16, 16).astype(np.float32)


# Type of a tensor in the file -> (how it is read, numbers in a block, bytes of a block).
KINDS = {0: (F32, 1, 4), 1: (F16, 1, 2), 30: (BF16, 1, 2), 2: (Q4_0, 32, 18), 3: (Q4_1, 32, 20), 8: (Q8_0, 32, 34),
         12: (Q4_K, K, 144), 14: (Q6_K, K, 210)}
