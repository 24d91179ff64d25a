"""Experts in MXFP4, as gpt-oss is released: by the definition of the format, and by transformers."""
import json

import architectures
import checkpoints_made as made
import numpy as np
import peers
import pytest
from safetensors.numpy import load_file, save_file

from lm import config, convert
from lm.convert import imports, quantised
from lm.models import Head, Layer
from lm.nn import Attention, ClampedSilu, Experts, Yarn

LAYER = Layer(Attention(4, 2, 8, position=Yarn(100.0, 4.0, 16, whole=False), sink=True, bias='all'),
              Experts(3, 2, 64, ClampedSilu(limit=7.0), bias=True))
MODEL = architectures.small(width=32, layer=LAYER, head=Head(tied=False))


def number(byte, high, scale):
    """Returns the number in half a byte, of a sign, two bits of an exponent and one of a fraction, under a scale."""
    bits = byte >> 4 if high else byte & 15
    exponent, fraction = bits >> 1 & 3, bits & 1
    size = fraction / 2 if exponent == 0 else 2 ** (exponent - 1) * (1 + fraction / 2)
    return (-1) ** (bits >> 3) * size * 2.0 ** (scale - 127)


def packed(rng, shape):
    """Returns blocks and scales of a tensor [E D F]."""
    experts, width, rows = shape
    return (rng.integers(0, 256, (experts, rows, width // 32, 16)).astype(np.uint8),
            rng.integers(120, 128, (experts, rows, width // 32)).astype(np.uint8))


def test_values_are_those_of_transformers_bit_for_bit(tmp_path):
    peers.call('mxfp4', tmp_path)
    peer = np.load(tmp_path / 'mxfp4.npz')
    np.testing.assert_array_equal(quantised.mxfp4(peer['blocks'], peer['scales']).astype(np.float32), peer['values'])


def test_a_directory_in_mxfp4_is_read_as_one_of_its_values(tmp_path):
    made.directory(tmp_path / 'model', MODEL)
    path = tmp_path / 'model' / 'model.safetensors'
    tensors, rng = load_file(path), np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith('_proj') and 'experts' in name]:
        tensors[f'{name}_blocks'], tensors[f'{name}_scales'] = packed(rng, tensors.pop(name).shape)
    save_file(tensors, path)
    hf = json.loads((tmp_path / 'model' / 'config.json').read_text())
    text = json.dumps(hf | {'quantization_config': {'quant_method': 'mxfp4'}})
    (tmp_path / 'model' / 'config.json').write_text(text)
    read = convert.HuggingFace(str(tmp_path / 'model')).params(convert.model(tmp_path / 'model'), None)
    experts = read['blocks']['experts']
    for layer, expert, row, column in np.ndindex(2, 3, 2, 64):
        name = f'model.layers.{layer}.mlp.experts'
        half, byte = column % 32 % 2, column % 32 // 2
        stored = [tensors[f'{name}.down_proj_{part}'][expert, row, column // 32] for part in ('blocks', 'scales')]
        assert experts['down'][layer, expert, column, row] == number(int(stored[0][byte]), half, int(stored[1]))
        stored = [tensors[f'{name}.gate_up_proj_{part}'][expert, column, 0] for part in ('blocks', 'scales')]
        ours = experts['up' if column % 2 else 'gate'][layer, expert, row, column // 2]
        assert ours == number(int(stored[0][row // 2]), row % 2, int(stored[1]))


def test_a_quantisation_that_is_not_read_is_named(tmp_path):
    made.directory(tmp_path / 'model', MODEL)
    hf = json.loads((tmp_path / 'model' / 'config.json').read_text())
    (tmp_path / 'model' / 'config.json').write_text(json.dumps(hf | {'quantization_config': {'quant_method': 'awq'}}))
    with pytest.raises(config.Error, match='has quant_method=awq, which is not read; those that are: fp8, mxfp4'):
        imports.run_of(tmp_path / 'model', tmp_path / 'run')
