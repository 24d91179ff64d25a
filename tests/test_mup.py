"""muP: the same run at the width that rates were tuned at, the same size of everything at others."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stacks
from architectures import jit, parameters, small

from lm import config, data, optim, train, trees
from lm.models.decoder import Base
from lm.nn.experts import Experts
from lm.optim import transforms
from lm.sweep import vectors

ALL = (optim.SGD(), optim.AdamW(ema=0.9), optim.Adafactor(), optim.Lion(), optim.Muon(), optim.Muon(rms=0.0),
       optim.ScheduleFree())
WIDE = dict(width=64, heads=16, bias='all', qk_norm=True, tied=False)


def settings(model, optimizer):
    corpus = data.Corpus(train=data.Synthetic(count=9, length=99), valid=None, tokenizer=data.Bytes(), context=8,
                         batch=4)
    return train.Config(model=model, data=corpus, optimizer=optimizer, steps=3)


def ran(settings, seed=0):
    """Returns the State and the losses after two steps on tokens drawn at random."""
    *_, init, step = train.parts(settings)
    tokens = np.random.default_rng(seed).integers(50, size=(2, 4, 9), dtype=np.int32)

    def run():
        batches = {'inputs': tokens[..., :-1], 'targets': tokens[..., 1:]}
        return jax.lax.scan(step, init(), batches)
    state, measured = jit(run)()
    return state, measured['loss']


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def test_at_the_width_of_the_base_nothing_changes():
    model = small(width=32, heads=8, depth=1, dropout=0.1, kv_heads=2, scaled_embedding=True)
    based = dataclasses.replace(model, base=Base(width=32, heads=8, kv_heads=2))
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
    found = factors(optimizer, small(**WIDE, base=Base(width=16, heads=4)))
    for name in ('attention/query', 'attention/value', 'attention/out', 'mlp/up', 'mlp/down'):
        assert found[name][0] == pytest.approx(hidden)
    assert found['tokens'][0] == found['output'][0] == pytest.approx(table)
    for name in ('attention_norm_scale', 'attention/query_bias', 'mlp/up_bias', 'final_norm_scale'):
        assert found[name][0] == pytest.approx(vector)
    assert found['attention/query_norm_scale'][0] == 1
    assert all(decay == pytest.approx(1) for _, decay in found.values())


def test_rates_by_regex_multiply_those_of_muon_and_of_the_width():
    optimizer = optim.Muon(adam_rate=3.0, rates=(('mlp', 10.0), ('tokens', 7.0)))
    found = factors(optimizer, small(**WIDE, base=Base(width=16, heads=4)))
    assert found['mlp/up'][0] == pytest.approx(5) and found['tokens'][0] == 21
    assert found['attention/query'] == pytest.approx((0.5, 1))


def test_initial_values_shrink_with_fan_in_and_more_where_outputs_are_few():
    experts = Experts(count=8, top=2, ff=128, shared=1)
    wide, plain = (jit(small(**WIDE, experts=experts, base=base).init)(jax.random.key(0))
                   for base in (Base(width=16, heads=4, expert_ff=32), Base()))
    hidden = ('query', 'key', 'value', 'out', 'up', 'down')
    for name, leaf in trees.flatten(plain).items():
        last = name.split('/')[-1]
        shrunk = 4 if last == 'router' else 2 if last in hidden else 1
        np.testing.assert_array_equal(trees.flatten(wide)[name] * shrunk, leaf, err_msg=name)


def test_experts_and_their_router_have_the_rate_of_their_fan_in():
    experts = Experts(count=8, top=2, ff=128)
    found = factors(optim.AdamW(), small(width=64, heads=16, experts=experts,
                                         base=Base(width=16, heads=4, expert_ff=32)))
    assert found['experts/router'][0] == found['experts/up'][0] == found['experts/down'][0] == 1 / 4


def test_scores_shrink_with_the_head_size_and_logits_with_the_width():
    grown = small(width=64, heads=4, base=Base(width=16))
    assert grown.scale == pytest.approx(2 / 16) and small(width=64, heads=4).scale == 16 ** -0.5
    assert small(width=64, heads=16, base=Base(width=16, heads=4)).scale == 4 ** -0.5
    plain = small(width=64, heads=16, depth=1)
    based = dataclasses.replace(plain, base=Base(width=16, heads=4))
    params, tokens = parameters(plain), np.arange(12).reshape(2, 6)
    ours, theirs = (jit(model.logits)(params, tokens) for model in (based, plain))
    np.testing.assert_allclose(ours, theirs / 4, rtol=1e-5, atol=1e-5)
    batch = {'inputs': tokens, 'targets': tokens}
    in_parts = jit(dataclasses.replace(based, loss_parts=4).loss)(params, batch)[0]
    np.testing.assert_allclose(in_parts, -np.mean(np.take_along_axis(
        jax.nn.log_softmax(ours), tokens[..., None], -1)), rtol=1e-5)


def test_activations_are_what_the_layers_add_up_to():
    model = small(depth=3, base=Base(width=8, heads=2))
    params, tokens = parameters(model), np.arange(12).reshape(2, 6)
    seen = jit(model.activations)(params, tokens)
    np.testing.assert_allclose(seen['logits'], jit(model.logits)(params, tokens), rtol=1e-5, atol=1e-5)
    before = jnp.concatenate([seen['embedding'][None], seen['residual'][:-1]])
    np.testing.assert_allclose(before + seen['attention'] + seen['mlp'], seen['residual'], rtol=1e-5, atol=1e-5)


def test_trials_of_one_program_have_their_own_rates_at_any_width():
    wide = settings(small(width=32, heads=8, depth=1, base=Base(width=16, heads=4)), optim.AdamW(weight_decay=0.1))

    def one(peak):
        return ran(vectors.with_traced_fields(wide, {'optimizer.peak': peak, 'optimizer.weight_decay': 10 * peak}))
    together = jax.vmap(one)(np.float32([1e-3, 1e-2]))
    alone = ran(config.override(wide, {'optimizer.peak': 1e-2, 'optimizer.weight_decay': 0.1}))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[1], y, rtol=2e-4, atol=1e-5), together, alone)


def test_an_optimizer_without_a_law_is_refused():
    model = small(width=64, heads=16, base=Base(width=16, heads=4))
    with pytest.raises(config.Error, match='AdaGrad .* try optimizer=Adam'):
        factors(optim.AdaGrad(), model)


@pytest.mark.parametrize('fields, words', [
    ({'width': 512, 'heads': 8, 'base': Base(width=250)}, ['base', 'width=250', 'heads=8', 'try width=248']),
    ({'base': Base(width=-2)}, ['base', 'width=-2']),
    ({'base': Base(expert_ff=8)}, ['base.expert_ff=8', 'no', 'try base.ff=8']),
])
def test_bad_sizes_are_one_clear_line(fields, words):
    with pytest.raises(config.Error) as caught:
        small(**fields)
    assert '\n' not in str(caught.value) and all(word in str(caught.value) for word in words)
