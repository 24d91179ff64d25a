"""Every family against transformers: random weights read, run, written back and loaded there; headers of full size."""
import json
import shutil
from functools import partial

import architectures
import checkpoints_made as made
import jax
import numpy as np
import peers
import peers_names
import pytest

from lm import config, convert, trees
from lm.convert import checkpoints, exports, families, start, tables
from lm.nn import Rope, Yarn

TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """Returns the folder of the peers' models, of all workers."""
    with peers.shared(tmp_path_factory, 'families') as (folder, new):
        if new:
            peers.call('make', folder)
        return folder


@partial(architectures.jit, static_argnums=0)
def activations(model, params, tokens):
    return model.activations(params, tokens)


def compare(values, expected, name):
    """Fails unless values are within 1e-4 of those expected, or of the largest of them where that is above 1."""
    error = np.abs(np.asarray(values) - expected).max() / max(1, np.abs(expected).max())
    assert error < TOLERANCE, f'{name}: {error}'


@pytest.mark.parametrize('name', peers_names.FAMILIES)
def test_logits_and_hidden_states_are_those_of_transformers(models, name):
    directory, expected = models / name, np.load(models / f'{name}.npz')
    model = convert.model(directory)
    params = convert.HuggingFace(str(directory)).params(model, None)
    with jax.default_matmul_precision('highest'):
        result = activations(model, params, expected['tokens'].astype(np.int32))
    compare(result['residual'][:-1], expected['states'], 'states')
    compare(result['logits'], expected['logits'], 'logits')


def export(directory, source):
    """Writes at a directory what exports write of the model and the weights at another, and returns the family."""
    model = convert.model(source)
    leaves = made.leaves(convert.HuggingFace(str(source)).params(model, None))
    family, hf = families.fitting(model)
    directory.mkdir()
    exports.write(directory, tables.Binding(model, family.TABLE), leaves, shard=2 ** 17)
    exports.write_config(directory, family, hf, context=64)
    return family


def test_exported_directories_load_in_transformers_and_give_its_logits(models, tmp_path):
    directories = []
    for name in peers_names.FAMILIES:
        family = export(tmp_path / name, models / name)
        assert families.of(checkpoints.Directory(models / name).config, name) is family, name
        np.save(tmp_path / name / 'tokens.npy', np.load(models / f'{name}.npz')['tokens'])
        directories.append(tmp_path / name)
    assert json.loads(peers.call('run', *directories)) == {str(directory): {} for directory in directories}
    for directory in directories:
        ours, theirs = np.load(directory / 'ran.npz'), np.load(models / f'{directory.name}.npz')
        compare(ours['logits'], theirs['logits'], directory.name)
        compare(ours['states'], theirs['states'], directory.name)


@pytest.mark.parametrize('name', peers_names.FAMILIES)
def test_read_and_written_tensors_are_the_same_bits(models, name):
    directory = checkpoints.Directory(models / name)
    model = start.model_of(directory)
    binding, tensor = start.bound(directory, model)
    stored = dict(exports.theirs(binding, lambda path: exports.Loaded(binding.parameters[path].read(tensor))))
    plus = any(parameter.tensor.plus for parameter in binding.parameters.values())
    for other, array in stored.items():
        expected = directory.tensor(other)
        same = np.allclose(array, expected, rtol=0, atol=1e-7) if plus else np.array_equal(array, expected)
        assert same, other


@pytest.fixture(scope='module')
def headers(tmp_path_factory):
    with peers.shared(tmp_path_factory, 'headers') as (folder, new):
        if new:
            peers.call('headers', folder)
        return folder


@pytest.mark.parametrize('name', peers_names.FULL)
def test_names_and_shapes_of_full_size_are_those_of_transformers(headers, name):
    header = json.loads((headers / f'{name}.json').read_text())
    hf = checkpoints.Settings(header['config'])
    model = families.of(hf, name).read(hf)
    family, _ = families.fitting(model)
    assert family is families.of(hf, name)
    shapes = {key: list(shape) for key, shape in tables.Binding(model, family.TABLE).shapes.items()}
    assert shapes == header['shapes']


@pytest.mark.parametrize('name, base, tied', [
    ('smollm3', 2e6, True), ('mixtral', 1e6, False), ('gpt_oss', 1.5e5, False), ('gemma3', 1e6, True),
    ('gpt_neox', 1e4, False), ('llama', 1e4, False)])
def test_keys_that_a_config_leaves_out_are_its_familys(models, name, base, tied):
    hf = checkpoints.Directory(models / name).config
    left = {key: value for key, value in hf.items()
            if key not in ('rope_parameters', 'tie_word_embeddings', 'rope_theta', 'rotary_pct')}
    model = families.model_of(checkpoints.Settings(left), name)
    positions = [layer.attention.position for layer in model.layers if hasattr(layer.attention.position, 'base')]
    assert max(position.base for position in positions) == base and model.head.tied == tied
    assert name != 'gpt_neox' or positions[0].fraction == 0.25


SMALL = {'vocab_size': 50, 'hidden_size': 64, 'intermediate_size': 48, 'num_hidden_layers': 4,
         'num_attention_heads': 16, 'hidden_act': 'silu', 'rms_norm_eps': 1e-6, 'max_position_embeddings': 64}


def layers(kind, **settings):
    """Returns the Layers of a small config.json of a model_type."""
    model = families.model_of(checkpoints.Settings({**SMALL, 'model_type': kind, **settings}), kind)
    return [model.stack.layer(number) for number in range(model.depth)]


def test_sizes_and_windows_that_a_config_leaves_out_are_its_familys():
    qwen, mistral = layers('qwen3', num_key_value_heads=2)[0].attention, layers('mistral', head_dim=4)[0].attention
    assert (qwen.head_dim, mistral.kv_heads, mistral.window) == (128, 8, 4096)
    windows = [layer.attention.window for layer in layers('smollm3', use_sliding_window=True, sliding_window=5)]
    assert windows == [0, 0, 0, 5]  # of layers that have no positions
    oss = layers('gpt_oss', num_local_experts=4, num_experts_per_tok=2, swiglu_alpha=1.5)
    assert [layer.attention.window for layer in oss] == [128, 0, 128, 0] and oss[0].mlp.activation.steepness == 1.5
    assert oss[0].attention.position == Yarn(150000.0, 32.0, 4096, whole=False)


def test_of_positions_a_length_beside_their_scaling_counts_first_and_a_fraction_not_in_llama():
    yarn = {'type': 'yarn', 'factor': 4.0}
    assert layers('llama', rope_scaling=yarn)[0].attention.position == Yarn(10000.0, 4.0, 64)
    assert layers('llama', rope_scaling={'type': 'yarn', 'original_max_position_embeddings': 16}
                  )[0].attention.position == Yarn(10000.0, 4.0, 16)
    assert layers('llama', rope_scaling={**yarn, 'original_max_position_embeddings': 16},
                  original_max_position_embeddings=32)[0].attention.position == Yarn(10000.0, 4.0, 32)
    assert layers('llama', partial_rotary_factor=0.5)[0].attention.position == Rope()
    assert layers('phi3', partial_rotary_factor=0.5)[0].attention.position == Rope(fraction=0.5)


def test_a_model_that_no_family_holds_is_refused_by_what_differs():
    with pytest.raises(config.Error, match='nearest, .* differs in .*alibi|Alibi'):
        families.fitting(architectures.ALL['alibi'])


@pytest.mark.parametrize('name', ['gpt2', 'llama', 'llama3', 'qwen3', 'gemma3', 'olmo2', 'neox'])
def test_a_model_of_ours_is_written_and_read(tmp_path, name):
    model = architectures.DECODERS[name]
    params = architectures.parameters(model)
    family, hf = families.fitting(model)
    exports.write(tmp_path, tables.Binding(model, family.TABLE), made.leaves(params))
    exports.write_config(tmp_path, family, hf, context=20)
    again = convert.model(tmp_path)
    assert families.canonical(again) == families.canonical(model)
    read = convert.HuggingFace(str(tmp_path)).params(again, None)
    for path, array in trees.flatten(params).items():
        rows = model.vocab if path in ('tokens', 'output') else None
        here, there = (x[:rows] if path == 'tokens' else x[..., :rows] for x in (array, trees.flatten(read)[path]))
        np.testing.assert_allclose(there, here, rtol=0, atol=2e-7, err_msg=path)
    shutil.rmtree(tmp_path)
