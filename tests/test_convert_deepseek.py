"""DeepSeek-V3 there and back through a run, whose layers are in two stacks; what of its checkpoints is not read."""
import dataclasses
import json

import checkpoints_made as made
import ml_dtypes
import numpy as np
import pytest
from architectures import small
from safetensors.numpy import load_file, save_file

from lm import config, convert
from lm.config import files
from lm.convert import exports, families, imports
from lm.models import Head, Layer
from lm.nn import MLP, Experts, LatentAttention, RMSNorm, Silu, Yarn

ATTENTION = LatentAttention(4, head_dim=10, rotary=4, value_dim=6, rank=8, query_rank=6, position=Yarn(20.0, 8.0, 12))
EXPERTS = Experts(6, 2, 12, shared=2, router='sigmoid', groups=3, top_groups=2, scale=2.5, bias_rate=0.01)
DENSE, MIXED = (Layer(ATTENTION, mlp, norm=RMSNorm(1e-6)) for mlp in (MLP(20, Silu(), gated=True), EXPERTS))
MODEL = small(depth=4, pattern=(DENSE, DENSE, MIXED, MIXED), head=Head(tied=False))


@pytest.fixture
def directory(tmp_path):
    made.directory(tmp_path / 'model', MODEL)
    return tmp_path / 'model'


def test_there_and_back_gives_the_same_files(directory, tmp_path):
    settings = imports.run_of(directory, tmp_path / 'run')
    assert settings.model.stack.stacks(16) == {'blocks': [0, 1], 'blocks_1': [2, 3]}
    assert families.canonical(settings.model) == families.canonical(MODEL)
    exports.directory_of(tmp_path / 'run', tmp_path / 'back')
    written, read = (load_file(path / 'model.safetensors') for path in (tmp_path / 'back', directory))
    assert written.keys() == read.keys() and all(np.array_equal(written[name], read[name]) for name in read)


def test_pairs_that_turn_lie_side_by_side_there_and_in_halves_here(directory):
    read = convert.HuggingFace(str(directory)).params(convert.model(directory), None)['blocks_1']['attention']
    stored = load_file(directory / 'model.safetensors')
    key = stored['model.layers.2.self_attn.kv_a_proj_with_mqa.weight'][8:]  # behind the latent
    np.testing.assert_array_equal(read['key'][0].T, key[[0, 2, 1, 3]])
    query = stored['model.layers.3.self_attn.q_b_proj.weight'].reshape(4, 10, 6)
    np.testing.assert_array_equal(read['query'][1].transpose(1, 2, 0), query[:, [*range(6), 6, 8, 7, 9]])


def test_the_module_of_the_token_after_the_next_is_left_out_in_one_line(directory, capfd):
    files.warn.cache_clear()
    expected = convert.HuggingFace(str(directory)).params(MODEL, None)
    assert 'left out' not in capfd.readouterr().err
    tensors = load_file(directory / 'model.safetensors')
    more = {f'model.layers.4.{name}': np.zeros(3, np.float32) for name in ('eh_proj.weight', 'mlp.gate.weight')}
    save_file(tensors | more, directory / 'model.safetensors')
    read = convert.HuggingFace(str(directory)).params(MODEL, None)
    line, = [line for line in capfd.readouterr().err.splitlines() if 'left out' in line]
    assert line.endswith('has the module that predicts the token after the next, which is left out: 2 tensors, '
                         'model.layers.4.*.')
    np.testing.assert_array_equal(read['blocks']['mlp']['up'], expected['blocks']['mlp']['up'])


def test_weights_in_fp8_are_multiplied_by_the_scales_of_their_blocks(directory):
    """As they are released, with blocks of 128 by 128; here of 4 by 8, and some cut short."""
    tensors, rng, exact = load_file(directory / 'model.safetensors'), np.random.default_rng(0), {}
    for name in [name for name in tensors if name.endswith(('_proj.weight', 'with_mqa.weight'))]:
        shape = tensors[name].shape
        stored = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        scales = rng.uniform(0.5, 2, (-(-shape[0] // 4), -(-shape[1] // 8))).astype(np.float32)
        tensors |= {name: stored, f'{name}_scale_inv': scales}
        exact[name] = np.array([[np.float32(stored[r, c]) * scales[r // 4, c // 8] for c in range(shape[1])]
                                for r in range(shape[0])])
    save_file(tensors, directory / 'model.safetensors')
    hf = json.loads((directory / 'config.json').read_text())
    (directory / 'config.json').write_text(json.dumps(hf | {
        'quantization_config': {'quant_method': 'fp8', 'weight_block_size': [4, 8]}}))
    read = convert.HuggingFace(str(directory)).params(convert.model(directory), None)
    np.testing.assert_array_equal(read['blocks']['mlp']['up'][1].T, exact['model.layers.1.mlp.up_proj.weight'])
    for expert in range(6):
        np.testing.assert_array_equal(read['blocks_1']['experts']['down'][0, expert].T,
                                      exact[f'model.layers.2.mlp.experts.{expert}.down_proj.weight'])
    latent = exact['model.layers.0.self_attn.kv_a_proj_with_mqa.weight'][:8]
    np.testing.assert_array_equal(read['blocks']['attention']['latent'][0].T, latent)


@pytest.mark.parametrize('settings, match', [
    ({'rope_interleave': False}, 'has rope_interleave=False, which lm lacks for deepseek_v3'),
    ({'scoring_func': 'softmax', 'topk_method': 'greedy'}, 'topk_method=greedy, scoring_func=softmax, which lm lacks'),
    ({'n_group': 4}, 'groups=4 and top_groups=2 do not cut count=6 experts')])
def test_what_is_not_read_is_refused_in_one_line(directory, tmp_path, settings, match):
    hf = json.loads((directory / 'config.json').read_text())
    (directory / 'config.json').write_text(json.dumps(hf | settings))
    with pytest.raises(config.Error, match=match) as fault:
        imports.run_of(directory, tmp_path / 'run')
    assert '\n' not in str(fault.value)


def test_a_model_whose_experts_come_first_is_held_by_no_family():
    with pytest.raises(config.Error, match='no family holds this model; the nearest, deepseek, differs in '):
        families.fitting(dataclasses.replace(MODEL, pattern=(MIXED, MIXED, DENSE, DENSE)))
