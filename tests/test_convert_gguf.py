"""GGUF against the package `gguf`: blocks of every kind, files of every architecture, and what is not read."""
import dataclasses

import architectures
import checkpoints_made as made
import gguf as peer
import numpy as np
import pytest

from lm import config, convert, trees
from lm.convert import families, gguf, imports
from lm.models import Decoder, Embedding, Head, Layer, SandwichNorm
from lm.nn import MLP, Attention, Gelu, RMSNorm, Rope, Silu, Yarn

SWIGLU = MLP(64, Silu(), gated=True)


def gemma(window, **fields):
    return Layer(Attention(4, 2, 16, window=window, scale=16 ** -0.5, **fields), MLP(64, Gelu(), gated=True),
                 norm=RMSNorm(1e-6), residual=SandwichNorm())


def small(*layers, depth=2, **fields):
    kind = {'layer': layers[0]} if len(layers) == 1 else {'pattern': layers}
    return Decoder(50, depth, 32, **kind, **fields)


LOCAL, GLOBAL = (gemma(6, position=Rope(10000.0), qk_norm=RMSNorm(1e-6)),
                 gemma(0, position=Rope(1000.0, 8.0), qk_norm=RMSNorm(1e-6)))
MODELS = {
    'llama': small(Layer(Attention(4, 2, position=Rope(500.0)), SWIGLU), head=Head(tied=False)),
    'qwen2': small(Layer(Attention(4, 2, bias='qkv'), SWIGLU)),
    'qwen3': small(Layer(Attention(4, 2, 12, qk_norm=RMSNorm(1e-5)), SWIGLU)),
    'gemma2': small(gemma(6, softcap=3.0), gemma(0, softcap=3.0), head=Head(softcap=2.0),
                    embedding=Embedding(scaled=True)),
    'gemma3': small(*[LOCAL] * 5, GLOBAL, depth=7, embedding=Embedding(scaled=True)),
    'gpt2': dataclasses.replace(architectures.DECODERS['gpt2'], width=32),
}


@pytest.mark.parametrize('kind', [number for number, (_, count, _) in gguf.KINDS.items() if count > 1])
def test_blocks_are_dequantised_as_by_the_package_bit_for_bit(kind):
    read, numbers, size = gguf.KINDS[kind]
    rng = np.random.default_rng(kind)
    blocks = rng.integers(0, 256, (70000, size)).astype(np.uint8)  # more than are dequantised at a time
    places = {'Q4_1': (0, 2), 'Q4_K': (0, 2), 'Q6_K': (208,)}.get(read.__name__, (0,))
    for place in places:  # halves that are numbers
        blocks[:, place:place + 2] = rng.standard_normal(len(blocks)).astype(np.float16)[:, None].view(np.uint8)
    values = gguf.dequantised((len(blocks), numbers), kind, blocks.reshape(-1))
    expected = peer.quants.dequantize(blocks, peer.GGMLQuantizationType(kind)).reshape(values.shape)
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))
    assert read.__name__ == peer.GGMLQuantizationType(kind).name


@pytest.mark.parametrize('name', MODELS)
def test_a_file_gives_the_model_and_the_parameters_it_was_made_of(tmp_path, name):
    params = made.gguf_file(tmp_path / 'model.gguf', MODELS[name])
    model = convert.model(tmp_path / 'model.gguf')
    assert families.canonical(model) == families.canonical(MODELS[name])
    read = trees.flatten(convert.Gguf(str(tmp_path / 'model.gguf')).params(model, None))
    for path, array in trees.flatten(params).items():
        here, there = (x[:50] if path == 'tokens' else x[..., :50] if path == 'output' else x
                       for x in (array, read[path]))
        np.testing.assert_allclose(there, here, rtol=0, atol=2e-7 if name.startswith('gemma') else 0, err_msg=path)


@pytest.mark.parametrize('kind', ['F16', 'BF16', 'Q8_0', 'Q4_0', 'Q4_1'])
def test_quantised_files_are_near_what_they_were_made_of(tmp_path, kind):
    params = made.gguf_file(tmp_path / 'model.gguf', MODELS['llama'], kind)
    read = convert.Gguf(str(tmp_path / 'model.gguf')).params(MODELS['llama'], None)
    query, expected = (tree['blocks']['attention']['query'] for tree in (read, params))
    error = np.abs(query - expected).max() / np.abs(expected).max()
    bounds = {'F16': (1e-6, 1e-3), 'BF16': (1e-6, 8e-3), 'Q8_0': (1e-5, 8e-3), 'Q4_0': (1e-3, 0.15),
              'Q4_1': (1e-3, 0.15)}
    assert bounds[kind][0] < error < bounds[kind][1]


def test_the_frequencies_of_llama_3_are_its_scaling(tmp_path):
    llama3 = Rope(500000.0, 8.0, original=8192, low=1.0, high=4.0)
    factors = np.asarray(Rope(500000.0).frequencies(16) / llama3.frequencies(16), np.float32)
    made.gguf_file(tmp_path / 'plain.gguf', dataclasses.replace(
        MODELS['llama'], layer=Layer(Attention(4, 2, 16, position=Rope(500000.0)), SWIGLU)))
    for name, factor in (('same', factors), ('other', factors * 1.5)):
        again(tmp_path / 'plain.gguf', tmp_path / f'{name}.gguf', tensors={'rope_freqs.weight': factor})
    assert convert.model(tmp_path / 'same.gguf').layer.attention.position == llama3
    with pytest.raises(config.Error, match=r'rope_freqs\.weight that is not the scaling of Llama 3'):
        convert.model(tmp_path / 'other.gguf')


def test_keys_that_change_what_is_computed_are_read_or_refused(tmp_path):
    made.gguf_file(tmp_path / 'plain.gguf', MODELS['llama'])

    def attention(**keys):
        again(tmp_path / 'plain.gguf', tmp_path / 'more.gguf', keys={key.replace('__', '.'): value
                                                                     for key, value in keys.items()})
        return convert.model(tmp_path / 'more.gguf').layer.attention
    assert attention(rope__scaling__type='yarn', rope__scaling__factor=4.0, rope__scaling__original_context_length=16,
                     rope__scaling__yarn_beta_fast=8.0).position == Yarn(500.0, 4.0, 16, fast=8.0)
    assert attention(rope__scaling__type='yarn', rope__scaling__factor=4.0).position == Yarn(500.0, 4.0, 20)
    assert not attention(attention__causal=False).causal and attention(attention__scale=0.0).causal
    for key, value in (('attention__scale', 0.25), ('logit_scale', 2.0), ('rope__scaling__attn_factor', 0.5)):
        with pytest.raises(config.Error, match=rf'llama\.{key.replace("__", ".")}={value}, which lm lacks; convert'):
            attention(**{key: value})
    with pytest.raises(config.Error, match='turns 4 dimensions of heads of 8, which lm lacks for llama'):
        attention(rope__dimension_count=4)


def again(source, target, keys=(), tensors=()):
    """Writes a GGUF file of a Llama again with more keys behind its architecture, or more tensors."""
    reader = peer.GGUFReader(source)
    writer = peer.GGUFWriter(target, 'llama')
    for name, field in reader.fields.items():
        if not name.startswith('GGUF.') and name != 'general.architecture':
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1])
    for key, value in dict(keys).items():
        writer.add_key_value(f'llama.{key}', value, peer.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, array in dict(tensors).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def damaged(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path):
    made.gguf_file(tmp_path / 'model.gguf', MODELS['llama'])
    whole = (tmp_path / 'model.gguf').read_bytes()
    for end in (6, 20, 100, 1000, len(whole) // 2, len(whole) - 40):
        (tmp_path / 'cut.gguf').write_bytes(whole[:end])
        with pytest.raises(config.Error, match=r'truncated: \d+ bytes of \d+ or more; fetch it again'):
            gguf.contents(tmp_path / 'cut.gguf')


def test_a_quantisation_that_is_not_read_names_those_that_are(tmp_path):
    writer = peer.GGUFWriter(tmp_path / 'model.gguf', 'llama')
    writer.add_tensor('blk.0.ffn_up.weight', np.zeros((1, 22), np.uint8), raw_dtype=peer.GGMLQuantizationType.Q5_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(config.Error, match=r'blk\.0\.ffn_up\.weight .*type 6 .*F32, F16, BF16, Q4_0, Q4_1, Q8_0, Q4_K, '
                                           'Q6_K'):
        gguf.contents(tmp_path / 'model.gguf')


def test_its_tokenizer_and_chat_template_are_kept_with_the_run(tmp_path):
    made.gguf_file(tmp_path / 'model.gguf', MODELS['llama'])
    settings = imports.run_of(tmp_path / 'model.gguf', tmp_path / 'run')
    encoder = settings.data.tokenizer.fit(None, tmp_path / 'run' / 'tokenizer')
    assert encoder.encode('abc a').tolist() == [made.BYTE_PAIRS.index(token) for token in ('abc', 'Ġa')]
    assert encoder.eos == 0
    assert (tmp_path / 'run/tokenizer/chat_template.jinja').read_text() == '{{ messages }}'
