"""muP: the same run at the width that rates were tuned at, the same size of everything at others."""
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stacks
from architectures import jit, parameters, small

from lm import config, data, optim, train, trees
from lm.config.overrides import with_traced_fields
from lm.models import Embedding, Head, Layer, MupBase, mup
from lm.nn import MLP, Attention, Execution, Experts, RMSNorm
from lm.optim import transforms

ALL = (optim.SGD(), optim.AdamW(ema=0.9), optim.Adafactor(), optim.Lion(), optim.Muon(), optim.Muon(rms=0.0),
       optim.ScheduleFree())
WIDE = {'width': 64, 'layer': Layer(Attention(16, bias='all', qk_norm=RMSNorm()), MLP(bias=True)),
        'head': Head(tied=False)}
BASE = MupBase(width=16, heads=4)


def settings(model, optimizer):
    corpus = data.Corpus(train=data.Synthetic(count=9, length=99), valid=None, tokenizer=data.Bytes(), context=8,
                         batch=4)
    return train.Config(model=model, data=corpus, optimizer=optimizer, steps=3)


def ran(settings, seed=0):
    """Returns the State and the losses after two steps on tokens drawn at random."""
    parts = train.parts(settings)
    tokens = np.random.default_rng(seed).integers(50, size=(2, 4, 9), dtype=np.int32)

    def run():
        batches = {'inputs': tokens[..., :-1], 'targets': tokens[..., 1:]}
        return jax.lax.scan(parts.step, parts.init(), batches)
    state, measured = jit(run)()
    return state, measured['loss']


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def test_at_the_width_of_the_base_nothing_changes():
    model = small(width=32, depth=1, layer=Layer(Attention(8, 2), dropout=0.1), embedding=Embedding(scaled=True))
    based = dataclasses.replace(model, base=MupBase(width=32, heads=8, kv_heads=2))
    optimizer = optim.AdamW(weight_decay=0.3)
    same(ran(settings(model, optimizer)), ran(settings(based, optimizer)))


@pytest.mark.parametrize('optimizer', [*ALL, optim.AdaGrad()], ids=stacks.named)
def test_at_the_width_of_the_base_no_optimizer_does_anything_else(optimizer):
    model = small(**WIDE)
    optimizer = dataclasses.replace(optimizer, weight_decay=0.3)
    params = jax.eval_shape(model.init, jax.random.key(0))
    plain, based = (transforms.plan(optimizer, params, model.axes(), tuned) for tuned in (None, params))
    assert (plain.decays, plain.multipliers) == (based.decays, based.multipliers)


def factors(optimizer, model):
    """Returns {name: (factor of the rate, factor of rate times decay)} of a model's parameters."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    optimizer = dataclasses.replace(optimizer, weight_decay=1.0, decay='.')
    plan = transforms.plan(optimizer, params, model.axes(), model.base_shapes())
    rates, decays = trees.flatten(plan.multipliers), trees.flatten(plan.decays)
    return {name.removeprefix('blocks/'): (rates[name], rates[name] * decays[name]) for name in rates}


@pytest.mark.parametrize('optimizer, hidden, table, vector', [
    (optim.SGD(), 1, 4, 4), (optim.Adam(), 1 / 4, 1, 1), (optim.AdamW(), 1 / 4, 1, 1), (optim.Lion(), 1 / 4, 1, 1),
    (optim.ScheduleFree(), 1 / 4, 1, 1), (optim.Adafactor(), 1 / 2, 1, 1), (optim.Muon(), 1 / 2, 1, 1),
    (optim.Muon(rms=0.0), 1, 1, 1)], ids=str)
def test_rates_follow_the_table_of_tensor_programs(optimizer, hidden, table, vector):
    found = factors(optimizer, small(**WIDE, base=BASE))
    for name in ('attention/query', 'attention/value', 'attention/out', 'mlp/up', 'mlp/down'):
        assert found[name][0] == pytest.approx(hidden)
    assert found['tokens'][0] == found['output'][0] == pytest.approx(table)
    for name in ('attention_norm_scale', 'attention/query_bias', 'mlp/up_bias', 'final_norm_scale'):
        assert found[name][0] == pytest.approx(vector)
    assert found['attention/query_norm_scale'][0] == 1
    assert all(decay == pytest.approx(1) for _, decay in found.values())


def test_rates_by_regex_multiply_those_of_muon_and_of_the_width():
    optimizer = optim.Muon(adam_rate=3.0, rates=(('mlp', 10.0), ('tokens', 7.0)))
    found = factors(optimizer, small(**WIDE, base=BASE))
    assert found['mlp/up'][0] == pytest.approx(5) and found['tokens'][0] == 21
    assert found['attention/query'] == pytest.approx((0.5, 1))


SPARSE = Layer(Attention(16, bias='all', qk_norm=RMSNorm()), Experts(8, 2, 128, shared=1))


def test_initial_values_shrink_with_fan_in_and_more_where_outputs_are_few():
    wide, plain = (jit(small(width=64, layer=SPARSE, head=Head(tied=False), base=base).init)(jax.random.key(0))
                   for base in (MupBase(width=16, heads=4, expert_ff=32), MupBase()))
    hidden = ('query', 'key', 'value', 'out', 'up', 'gate', 'down')
    for name, leaf in trees.flatten(plain).items():
        last = name.split('/')[-1]
        shrunk = 4 if last == 'router' else 2 if last in hidden else 1
        np.testing.assert_array_equal(trees.flatten(wide)[name] * shrunk, leaf, err_msg=name)


def test_experts_and_their_router_have_the_rate_of_their_fan_in():
    model = small(width=64, layer=SPARSE, base=MupBase(width=16, heads=4, expert_ff=32))
    rates = factors(optim.AdamW(), model)
    for name in ('router', 'up', 'gate', 'down'):
        assert rates[f'experts/{name}'][0] == 1 / 4


def scale(model):
    return model.stack.pattern[0].attention.scale


def test_scores_shrink_with_the_head_size_and_logits_with_the_width():
    assert scale(small(width=64, base=MupBase(width=16))) == pytest.approx(2 / 16)
    assert scale(small(width=64)) is None
    plain = small(width=64, depth=1, layer=Layer(Attention(16)))
    based = dataclasses.replace(plain, base=BASE)
    assert scale(based) is None
    params, tokens = parameters(plain), np.arange(12).reshape(2, 6)
    ours, theirs = (jit(model.logits)(params, tokens) for model in (based, plain))
    np.testing.assert_allclose(ours, theirs / 4, rtol=1e-5, atol=1e-5)
    batch = {'inputs': tokens, 'targets': tokens}
    chunked = dataclasses.replace(based, execution=Execution(vocab_chunks=4))
    loss = jit(partial(train.NextToken().loss, chunked))(params, batch)[0]
    np.testing.assert_allclose(loss, -np.mean(np.take_along_axis(
        jax.nn.log_softmax(ours), tokens[..., None], -1)), rtol=1e-5)


def test_a_scale_of_scores_that_is_set_stays():
    assert scale(small(width=64, layer=Layer(Attention(4, scale=0.3)), base=MupBase(width=16))) == 0.3


def test_each_layer_of_a_pattern_is_scaled():
    model = small(width=64, pattern=(Layer(Attention(4, window=3)), Layer(Attention(4))), base=MupBase(width=16))
    assert [layer.attention.scale for layer in model.stack.pattern] == [pytest.approx(2 / 16)] * 2
    assert [layer.attention.window for layer in model.stack.pattern] == [3, 0]
    assert {name: shape.shape[-1] for name, shape in model.base_shapes().items() if name != 'blocks'} == {
        'tokens': 16, 'final_norm_scale': 16}


def test_activations_are_what_the_layers_add_up_to():
    model = small(depth=3, base=MupBase(width=8, heads=2))
    params, tokens = parameters(model), np.arange(12).reshape(2, 6)
    seen = jit(model.activations)(params, tokens)
    np.testing.assert_allclose(seen['logits'], jit(model.logits)(params, tokens), rtol=1e-5, atol=1e-5)
    before = jnp.concatenate([seen['embedding'][None], seen['residual'][:-1]])
    np.testing.assert_allclose(before + seen['attention'] + seen['mlp'], seen['residual'], rtol=1e-5, atol=1e-5)


def test_trials_of_one_program_have_their_own_rates_at_any_width():
    wide = settings(small(width=32, depth=1, layer=Layer(Attention(8)), base=BASE), optim.AdamW(weight_decay=0.1))

    def one(peak):
        return ran(with_traced_fields(wide, {'optimizer.peak': peak, 'optimizer.weight_decay': 10 * peak}))
    together = jax.vmap(one)(np.float32([1e-3, 1e-2]))
    alone = ran(config.override(wide, {'optimizer.peak': 1e-2, 'optimizer.weight_decay': 0.1}))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, rtol=2e-4, atol=1e-5), together, alone)


def test_a_negative_size_of_the_base_is_refused_where_it_is_written():
    with pytest.raises(config.Error, match='width=-2 is not an int'):
        MupBase(width=-2)


def test_an_optimizer_without_a_law_is_refused():
    model = small(width=64, layer=Layer(Attention(16)), base=BASE)
    with pytest.raises(config.Error, match='AdaGrad .* try optimizer=Adam'):
        factors(optim.AdaGrad(), model)


@pytest.mark.parametrize('fields, words', [
    ({'width': 512, 'layer': Layer(Attention(8)), 'base': MupBase(width=250)},
     ['base', 'width=250', 'heads=8', 'try width=248']),
    ({'base': MupBase(expert_ff=8)}, ['base.expert_ff=8', 'none', 'try base.ff=8']),
    ({'layer': Layer(Attention(4), Experts(8, 2, 16)), 'base': MupBase(ff=8)},
     ['base.ff=8', 'none', 'try base.expert_ff=8']),
])
def test_bad_sizes_are_one_clear_line(fields, words):
    with pytest.raises(config.Error) as caught:
        small(**fields)
    assert '\n' not in str(caught.value) and all(word in str(caught.value) for word in words)


def test_a_base_has_sizes_for_dense_layers_and_for_those_of_experts():
    model = small(width=64, pattern=(Layer(Attention(16), MLP(96)), Layer(Attention(16), Experts(4, 2, 48))),
                  base=MupBase(width=16, heads=4, ff=24, expert_ff=12))
    assert [layer.mlp.ff for layer in mup.base_model(model).pattern] == [24, 12]
    shapes = model.base_shapes()
    assert shapes['blocks']['mlp']['up'].shape == (1, 16, 24)
    assert shapes['blocks_1']['experts']['up'].shape == (1, 4, 16, 12)
