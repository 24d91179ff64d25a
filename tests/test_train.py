from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, data, optim, train
from lm.models import Decoder, Layer
from lm.nn import Attention

MODEL = Decoder(vocab=50, depth=2, width=16, layer=Layer(Attention(heads=2)))
LOSS = partial(train.NextToken().loss, MODEL)


def settings(**changes):
    text = data.Synthetic(count=4, length=500)
    given = {'model': MODEL, 'data': data.Corpus(train=text, valid=None, tokenizer=data.Bytes(), context=8, batch=8),
             'optimizer': optim.AdamW(peak=1e-2, schedule=optim.Constant()), 'steps': 10, 'mesh': {'data': 1}}
    return train.Config(**{**given, **changes})


def batch(rows=8, seed=0, weights=True):
    tokens = jax.random.randint(jax.random.key(seed), (rows, 9), 0, MODEL.vocab)
    uneven = (jnp.arange(rows)[:, None] * 3 + jnp.arange(8)) % 7 < jnp.arange(rows)[:, None] % 5
    given = {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}
    return {**given, 'weights': uneven.astype(jnp.float32)} if weights else given


@pytest.mark.parametrize('parts', [2, 4, 8])
def test_accumulated_equals_one_big_batch(parts):
    params = MODEL.init(jax.random.key(0))
    whole, measured = train.accumulated(LOSS, 1)(params, batch(), None)
    key = jax.random.key(0)
    pieces, again = train.accumulated(LOSS, parts)(params, batch(), key)
    assert batch()['weights'].sum(-1).min() == 0
    assert again.keys() == measured.keys()
    for name in measured:
        assert np.isclose(measured[name], again[name], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), whole, pieces)


def run(step, state, batches):
    losses = []
    for each in batches:
        state, measured = step(state, each)
        losses.append(float(measured['loss']))
    return state, losses


def test_the_step_is_a_pure_function_of_state_and_batch():
    model = Decoder(vocab=50, depth=2, width=16, layer=Layer(Attention(heads=2), dropout=0.3))
    tx = optim.AdamW().make(10)
    params = model.init(jax.random.key(0))
    state = train.State(jnp.int32(0), params, tx.init(params), jnp.int32(0))
    step = jax.jit(train.make_step(partial(train.NextToken().loss, model), tx, seed=3))
    end, losses = run(step, state, [batch(seed=i) for i in range(4)])
    middle, _ = run(step, state, [batch(seed=i) for i in range(2)])
    again, tail = run(step, middle, [batch(seed=i) for i in range(2, 4)])
    assert losses[2:] == tail
    jax.tree.map(np.testing.assert_array_equal, end, again)
    other = jax.jit(train.make_step(partial(train.NextToken().loss, model), tx, seed=4))
    assert run(other, state, [batch()])[1] != losses[:1]


def poisoned(params, given, key):
    loss, measured = LOSS(params, given, key)
    bad = jnp.where(given['inputs'][0, 0] == 49, jnp.nan, 1.0)
    return loss * bad, {**measured, 'loss': measured['loss'] * bad}


def test_an_update_that_is_not_finite_is_skipped_and_counted():
    tx = optim.AdamW().make(10)
    params = MODEL.init(jax.random.key(0))
    state = train.State(jnp.int32(0), params, tx.init(params), jnp.int32(0))
    step = jax.jit(train.make_step(poisoned, tx))
    good = batch(weights=False)
    bad = {**good, 'inputs': good['inputs'].at[0, 0].set(49)}
    good = {**good, 'inputs': good['inputs'].at[0, 0].set(0)}
    after, measured = step(state, bad)
    assert int(after.step) == 1 and int(after.bad) == 1 and int(measured['bad']) == 1
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.optimizer), (state.params, state.optimizer))
    again, _ = step(after, bad)
    assert int(again.bad) == 2
    well, _ = step(again, good)
    assert int(well.bad) == 0
    assert not np.array_equal(well.params['tokens'], state.params['tokens'])


def test_program_shards_the_optimizer_like_the_parameters():
    built = train.program(settings(mesh={'data': 2, 'fsdp': 4}))
    state = built.init()
    query = state.params['blocks']['attention']['query']
    assert query.sharding.shard_shape(query.shape) == (2, 4, 2, 8)
    mirrored = [leaf for leaf in jax.tree.leaves(state.optimizer) if leaf.shape == query.shape]
    assert mirrored and all(leaf.sharding == query.sharding for leaf in mirrored)


def test_clear_errors():
    with pytest.raises(config.Error, match='data.batch=8 is not a multiple of accumulate=3; try data.batch=9.'):
        settings(accumulate=3)
    with pytest.raises(config.Error, match=r'steps=0 is not an int in \[1, 2147483647\]'):
        settings(steps=0)
    with pytest.raises(config.Error, match='mesh=.* does not fill 8 devices; try mesh='):
        train.program(settings(mesh={'data': 3}))
    with pytest.raises(config.Error, match="mesh has no axis 'dtaa'"):
        train.program(settings(mesh={'dtaa': 8}))


def test_zero_splits_the_optimizers_state_over_data_and_changes_no_step():
    def end(**changes):
        program = train.program(settings(mesh={'data': 4, 'fsdp': 2}, **changes))
        with jax.set_mesh(program.mesh):
            return run(program.step, program.init(), [batch(seed=i) for i in range(3)])
    (plain, losses), (split, again) = end(), end(zero=True)
    np.testing.assert_allclose(losses, again, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain.params, split.params)
    up = split.optimizer.direction.mu['blocks']['mlp']['up']
    assert plain.optimizer.direction.mu['blocks']['mlp']['up'].sharding.shard_shape(up.shape) == (2, 8, 64)
    assert up.sharding.shard_shape(up.shape) == (2, 2, 64)
    assert split.params['blocks']['mlp']['up'].sharding.shard_shape(up.shape) == (2, 8, 64)
