"""What lm convert refuses: in one line, with the fact, the value and a remedy."""
import dataclasses
import json

import architectures
import checkpoints_made as made
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm import cli, config, convert
from lm.config import files
from lm.convert import imports, start
from lm.nn import RMSNorm
from lm.train import runs

MODEL = architectures.DECODERS['llama']


@pytest.fixture
def directory(tmp_path):
    made.directory(tmp_path / 'model', MODEL)
    return tmp_path / 'model'


def change(directory, **settings):
    """Sets keys of a config.json; None removes one."""
    hf = json.loads((directory / 'config.json').read_text()) | settings
    (directory / 'config.json').write_text(json.dumps({key: value for key, value in hf.items() if value is not None}))


def refused(directory, tmp_path, match):
    with pytest.raises(config.Error, match=match) as fault:
        imports.run_of(directory, tmp_path / 'run')
    assert '\n' not in str(fault.value) and not (tmp_path / 'run').exists()


def test_an_unknown_architecture_names_the_nearest(directory, tmp_path):
    change(directory, architectures=['LlamaForCausalLMs'], model_type='lama')
    refused(directory, tmp_path, 'model is LlamaForCausalLMs, which lm does not convert; the nearest: LlamaForCausalLM')


def test_missing_and_extra_tensors_are_all_listed(directory, tmp_path):
    tensors = load_file(directory / 'model.safetensors')
    for layer in range(2):
        tensors.pop(f'model.layers.{layer}.mlp.up_proj.weight')
        tensors[f'model.layers.{layer}.mlp.other.weight'] = np.zeros(3, np.float32)
    tensors['extra'] = tensors.pop('lm_head.weight')
    save_file(tensors, directory / 'model.safetensors')
    refused(directory, tmp_path, r'missing model\.layers\.\{0-1\}\.mlp\.up_proj\.weight, lm_head\.weight; '
                                 r'extra extra, model\.layers\.\{0-1\}\.mlp\.other\.weight; compare')


def test_shapes_that_are_not_those_of_config_json_are_listed(directory, tmp_path):
    change(directory, num_key_value_heads=4)
    refused(directory, tmp_path, r'model\.layers\.0\.self_attn\.k_proj\.weight is \[8, 16\] and by the sizes of the '
                                 r'model \[16, 16\]; .*model\.layers\.1\.self_attn\.v_proj\.weight')


def test_a_pickle_is_refused_and_never_opened(directory, tmp_path):
    (directory / 'model.safetensors').rename(directory / 'pytorch_model.bin')
    refused(directory, tmp_path, r'pytorch_model\.bin is a pickle, which executes code')


@pytest.mark.parametrize('bytes', [4, 100, -1])
def test_a_truncated_file_is_refused(directory, tmp_path, bytes):
    content = (directory / 'model.safetensors').read_bytes()
    (directory / 'model.safetensors').write_bytes(content[:bytes])
    refused(directory, tmp_path, r'model\.safetensors is truncated: \d+ bytes.* fetch it again')


def test_a_shard_that_is_absent_is_named(directory, tmp_path):
    (directory / 'model.safetensors').unlink()
    (directory / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': 'model-2.safetensors'}}))
    refused(directory, tmp_path, r'cannot read .*model-2\.safetensors: No such file')


def test_a_tokenizer_larger_than_the_embedding_is_refused(directory, tmp_path):
    tokenizer = made.tokenizer()
    tokenizer['model']['vocab'] |= {f'x{number}': number for number in range(20, 60)}
    (directory / 'tokenizer.json').write_text(json.dumps(tokenizer))
    refused(directory, tmp_path, 'has 60 tokens and the embedding 50 rows')


def test_a_tokenizer_that_is_absent_is_asked_for(directory, tmp_path):
    (directory / 'tokenizer.json').unlink()
    refused(directory, tmp_path, 'has neither a tokenizer.json nor a tokenizer.model')


@pytest.mark.parametrize(('settings', 'match'), [
    ({'rope_parameters': {'rope_type': 'longrope', 'rope_theta': 1e4}}, "rope scaling 'longrope', which lm lacks"),
    ({'rope_parameters': None, 'rope_scaling': {'type': 'dynamic', 'factor': 2.0}}, "rope scaling 'dynamic'"),
    ({'hidden_act': 'silou'}, 'hidden_act=silou, which lm lacks; those that it has: silu'),
    ({'partial_rotary_factor': 0.5, 'rope_parameters': None, 'rope_scaling': {'type': 'linear', 'factor': 2.0}},
     "partial_rotary_factor=0.5 with rope scaling 'linear', which this family lacks"),
    ({'architectures': ['Gemma2ForCausalLM'], 'use_bidirectional_attention': True},
     'use_bidirectional_attention=True, which lm lacks for gemma2; it reads use_bidirectional_attention=False'),
    ({'architectures': ['RobertaForMaskedLM'], 'pad_token_id': 0}, 'pad_token_id=0, which lm lacks for roberta'),
    ({'architectures': ['DeepseekV3ForCausalLM'], 'rope_interleave': False}, 'rope_interleave=False, which lm lacks'),
    ({'hidden_size': None}, 'config.json has no hidden_size'), ({'num_attention_heads': 0}, 'heads=0'),
    ({'hidden_size': 'wide', 'head_dim': None}, 'is damaged, or of a kind that lm does not know'),
    ({'architectures': 'Llama'}, 'config.json is damaged')])
def test_settings_that_are_not_known_are_named(directory, tmp_path, settings, match):
    change(directory, **settings)
    refused(directory, tmp_path, match)


def test_a_directory_that_is_not_empty_is_not_written_to(directory, tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'mine.txt').write_text('mine')
    with pytest.raises(config.Error, match=r'run is not empty: it holds mine\.txt; name a new directory'):
        imports.run_of(directory, tmp_path / 'run')


def test_a_start_of_another_model_lists_what_differs(directory):
    other = dataclasses.replace(MODEL, depth=3)
    with pytest.raises(config.Error, match=r'missing model\.layers\.2\.self_attn\.k_proj\.weight, '):
        convert.HuggingFace(str(directory)).params(other, None)
    with pytest.raises(config.Error, match='there is no .*nowhere'):
        start.opened(directory / 'nowhere')
    with pytest.raises(config.Error, match='is no GGUF file'):
        start.opened(directory / 'config.json')


def test_a_start_of_a_model_that_computes_otherwise_warns(directory, capfd):
    files.warn.cache_clear()
    convert.HuggingFace(str(directory)).params(MODEL, None)
    assert 'is not that of' not in capfd.readouterr().err
    layer = dataclasses.replace(MODEL.layer, norm=RMSNorm(1e-3))
    convert.HuggingFace(str(directory)).params(dataclasses.replace(MODEL, layer=layer), None)
    assert 'model.pattern.0.norm.epsilon=0.001 (1e-05 there)' in capfd.readouterr().err


def test_a_converted_run_has_no_text_of_its_own_and_says_what_to_do(directory, tmp_path, capfd):
    assert cli.main(['convert', str(directory), str(tmp_path / 'run')]) == 0
    assert cli.main(['eval', str(tmp_path / 'run')]) == 2
    assert 'score some with lm eval RUN --text=FILES' in capfd.readouterr().err
    assert cli.main(['convert', str(tmp_path / 'run'), str(tmp_path / 'run')]) == 2
    assert 'is not empty' in capfd.readouterr().err


@pytest.mark.parametrize('times', [30, 1])
def test_a_converted_run_is_scored_on_other_text(directory, tmp_path, capfd, times):
    (tmp_path / 'text.txt').write_text('abc bc a' * times)
    imports.run_of(directory, tmp_path / 'run')
    capfd.readouterr()
    assert cli.main(['eval', str(tmp_path / 'run'), f'--text={tmp_path}/text.txt', f'--cache={tmp_path}/cache']) == 0
    scores = json.loads(capfd.readouterr().out)
    model, encoder = MODEL, runs.load(tmp_path / 'run', devices=jax.devices()[:1]).encoder
    tokens = np.array([0, *encoder.encode('abc bc a' * times), 0], np.int32)  # a document ends as it begins
    context = min(20, len(tokens) - 2)  # of a text that is shorter, the last token is a row of its own
    rows = [tokens[first:first + context + 1] for first in range(0, len(tokens) - 1, context)]
    params = convert.HuggingFace(str(directory)).params(model, None)
    nll = [model.token_losses(params, {'inputs': row[None, :-1], 'targets': row[None, 1:]})[0].sum() for row in rows]
    assert scores['tokens'] == len(tokens) - 1
    np.testing.assert_allclose(scores['loss'], np.sum(nll) / (len(tokens) - 1), rtol=1e-4)


def test_names_of_a_base_model_and_older_names_of_settings_are_read(directory):
    tensors = load_file(directory / 'model.safetensors')
    expected = convert.HuggingFace(str(directory)).params(MODEL, None)
    save_file({name.removeprefix('model.'): array for name, array in tensors.items()}, directory / 'model.safetensors')
    change(directory, rope_parameters=None, rope_theta=10000.0)
    assert convert.model(directory).layer.attention.position == MODEL.layer.attention.position
    read = convert.HuggingFace(str(directory)).params(convert.model(directory), None)
    np.testing.assert_array_equal(read['blocks']['attention']['query'], expected['blocks']['attention']['query'])


def test_there_and_back_gives_the_same_files(directory, tmp_path):
    assert cli.main(['convert', str(directory), str(tmp_path / 'run')]) == 0
    assert cli.main(['convert', str(tmp_path / 'run'), str(tmp_path / 'back')]) == 0
    for name in ('model.safetensors', 'tokenizer.json'):
        assert (tmp_path / 'back' / name).read_bytes() == (directory / name).read_bytes()
    assert runs.load(tmp_path / 'run').step == 1
