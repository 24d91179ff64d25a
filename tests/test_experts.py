"""Mixtures of experts: against every expert computed for every token, over meshes, and their balance."""
import dataclasses
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import parameters, small
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm import config, optim, train
from lm.models import Layer
from lm.nn import Attention, ClampedSilu, Context, Execution, Experts, Gelu, Relu2, expert_dispatch
from lm.nn.weights import Scope, normal
from lm.parallel import sharding

EXPERTS = Experts(count=8, top_k=2, ff=12)
VARIANTS = {
    'softmax': EXPERTS,
    'sigmoid': dataclasses.replace(EXPERTS, router='sigmoid', scale=2.5, bias_rate=0.1, activation=Gelu()),
    'plain': dataclasses.replace(EXPERTS, normalised=False, top_k=3, activation=Relu2(), gated=False),
    'biased': dataclasses.replace(EXPERTS, bias=True, activation=ClampedSilu(limit=0.4)),
    'biased plain': dataclasses.replace(EXPERTS, bias=True, activation=Relu2(), gated=False),
}
X = np.random.default_rng(0).standard_normal((4, 6, 16)).astype(np.float32)


def sparse(experts, **fields):
    return small(layer=Layer(Attention(4), experts), **fields)


def weights_of(experts):
    return jax.tree.map(lambda x: x[0], parameters(sparse(experts))['blocks']['experts'])


def dense(experts, params, x):
    """Returns the mixture [B T D] as a sum over all experts, those not chosen weighing 0."""
    bias = {name: params[f'{name}_bias'] if experts.bias else 0 for name in ('routes', 'gate', 'up', 'down')
            if experts.gated or name != 'gate'}
    logits = x @ params['router'] + bias['routes']
    scores = jax.nn.sigmoid(logits) if experts.router == 'sigmoid' else jax.nn.softmax(logits)
    wanted = scores + (params['router_bias'] if experts.bias_rate else 0)
    chosen = wanted >= jnp.sort(wanted, -1)[..., -experts.top_k, None]
    gates = jnp.where(chosen, scores, 0)
    gates = experts.scale * (gates / gates.sum(-1, keepdims=True) if experts.normalised else gates)
    up = jnp.einsum('BTD,EDF->BTEF', x, params['up']) + bias['up']
    act = {'Silu': jax.nn.silu, 'Gelu': jax.nn.gelu, 'Relu2': lambda x: jnp.square(jax.nn.relu(x)),
           'ClampedSilu': lambda x: jnp.minimum(x, 0.4) * jax.nn.sigmoid(1.702 * jnp.minimum(x, 0.4))}[
               type(experts.activation).__name__]
    if isinstance(experts.activation, ClampedSilu):
        up = 1 + jnp.clip(up, -0.4, 0.4)
    hidden = act(jnp.einsum('BTD,EDF->BTEF', x, params['gate']) + bias['gate']) * up if experts.gated else act(up)
    return jnp.einsum('BTEF,EFD,BTE->BTD', hidden, params['down'], gates) + jnp.einsum(
        'BTE,ED->BTD', gates, jnp.broadcast_to(bias['down'], (experts.count, x.shape[-1])))


def apply(experts, params, x):
    """Returns (the mixture [B T D], measurements)."""
    return Scope(lambda _, x: experts(x, None, Context(None), execution=Execution(), init=normal(0.02))).apply(
        {'params': {'experts': params}}, x)


def mixed(experts, params, x):
    return apply(experts, params, x)[0]


def slope(run, experts):
    """Returns the gradient of a weighted sum of the mixture by parameters and tokens."""
    return jax.grad(lambda params, x: jnp.sum(jnp.sin(run(experts, params, x))), (0, 1))


@pytest.mark.parametrize('experts', VARIANTS.values(), ids=VARIANTS)
def test_a_mixture_is_the_sum_over_its_experts(experts):
    params = weights_of(experts)
    np.testing.assert_allclose(mixed(experts, params, X), dense(experts, params, X), rtol=1e-4, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4),
                 slope(mixed, experts)(params, X), slope(dense, experts)(params, X))


def test_shared_experts_are_an_mlp_that_every_token_uses():
    experts = dataclasses.replace(EXPERTS, shared=2)
    params = jax.tree.map(lambda x: x[0], parameters(sparse(experts))['blocks'])
    assert params['mlp']['up'].shape == (16, 2 * EXPERTS.ff)
    whole = Scope(lambda _, x: experts(x, None, Context(None), execution=Execution(), init=normal(0.02))).apply(
        {'params': params}, X)
    mlp = params['mlp']
    shared = (jax.nn.silu(X @ mlp['gate']) * (X @ mlp['up'])) @ mlp['down']
    np.testing.assert_allclose(whole[0], mixed(EXPERTS, params['experts'], X) + shared, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('sizes', [{'expert': 8}, {'expert': 4, 'tensor': 2}, {'fsdp': 2, 'expert': 2, 'data': 2},
                                   {'expert': 2, 'context': 2, 'tensor': 2}, {'data': 4, 'tensor': 2}],
                         ids=lambda sizes: '-'.join(f'{k}{v}' for k, v in sizes.items()))
def test_experts_over_a_mesh_are_the_experts_of_one_device(sizes):
    params, x = weights_of(EXPERTS), np.concatenate([X, -X])
    mesh = sharding.make_mesh(sizes)
    axes = {name: names[1:] for name, names in sparse(EXPERTS).axes()['blocks']['experts'].items()}
    placed = jax.tree.map(lambda p, names: jax.device_put(p, NamedSharding(mesh, sharding.spec(names, p.shape, mesh))),
                          params, axes)
    with jax.set_mesh(mesh):
        tokens = jax.device_put(x, NamedSharding(mesh, sharding.spec(('batch', 'length', None), x.shape, mesh)))
        found = architectures.jit(partial(mixed, EXPERTS))(placed, tokens)
        gradient = architectures.jit(slope(mixed, EXPERTS))(placed, tokens)
    if 'expert' in sizes:
        assert placed['up'].sharding.shard_shape(placed['up'].shape)[0] == 8 // sizes['expert']
    np.testing.assert_allclose(found, mixed(EXPERTS, params, x), rtol=1e-4, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), gradient, slope(mixed, EXPERTS)(params, x))


@pytest.mark.parametrize('sizes', [[0, 5, 1, 0, 250, 40], [300, 0, 0, 0, 0, 0], [1, 2, 3, 4, 5, 6]], ids=str)
def test_blocks_of_one_expert_each_give_the_ragged_product(sizes):
    rng, count = np.random.default_rng(0), sum(sizes) + 4
    rows, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((count, 8), (len(sizes), 8, 5)))
    rows[sum(sizes):] = 0

    def slope(kind):
        def product(rows, w):
            groups = kind(jnp.array(sizes), count)
            return groups.ungroup(groups.multiply(groups.group(rows), w))
        return jax.jit(jax.value_and_grad(lambda *given: jnp.sum(jnp.sin(product(*given))), (0, 1)))(rows, w)
    ragged, blocks = slope(expert_dispatch._Ragged), slope(expert_dispatch._Blocks)
    (expected, (by_rows, by_w)), (found, (rows_found, w_found)) = ragged, blocks
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(rows_found[:sum(sizes)], by_rows[:sum(sizes)], atol=1e-5)
    np.testing.assert_allclose(w_found, by_w, atol=1e-4)


def test_on_a_gpu_no_row_meets_another_experts_matrix(monkeypatch):
    given = jax.tree.map(jnp.asarray, (weights_of(EXPERTS), X))
    expected = mixed(EXPERTS, *given)
    monkeypatch.setattr(sharding, 'platform', lambda: 'gpu')
    assert 'ragged_dot' not in str(jax.make_jaxpr(partial(mixed, EXPERTS))(*given))
    np.testing.assert_allclose(mixed(EXPERTS, *given), expected, atol=1e-6)


def test_tokens_over_the_capacity_are_dropped_and_others_are_not():
    params = weights_of(EXPERTS)
    params['router'] = np.zeros_like(params['router'])
    params['router'][0] = np.arange(8, 0, -1)  # tokens above 0 choose experts 0 and 1, on one device
    x = np.abs(np.concatenate([X, X]))

    def run(capacity_factor):
        experts = dataclasses.replace(EXPERTS, capacity_factor=capacity_factor)
        with jax.set_mesh(sharding.make_mesh({'expert': 4}, jax.devices()[:4])):
            return architectures.jit(partial(mixed, experts))(params, x)
    whole = run(0.0)
    np.testing.assert_allclose(run(4.0), whole, atol=1e-6)
    short = np.asarray(run(2.0))
    lost = np.all(short == 0, -1)
    assert 0.4 <= lost.mean() <= 0.6
    np.testing.assert_allclose(short[:2], whole[:2], atol=1e-6)


def test_even_loads_have_the_least_balance_loss():
    params = weights_of(EXPERTS)
    even = {**params, 'router': np.concatenate([10 * np.eye(8), np.zeros((8, 8))]).astype(np.float32)}
    one_hot = np.eye(16, dtype=np.float32)[np.arange(16) % 8][None]
    spread = apply(EXPERTS, even, one_hot)[1]
    crowded = apply(EXPERTS, even, one_hot[:, :1].repeat(16, 1))[1]
    np.testing.assert_allclose(spread['balance'], 1, rtol=0.05)
    assert crowded['balance'] > 2
    np.testing.assert_allclose(spread['load'].sum(), 1, rtol=1e-6)


def test_the_bias_moves_against_the_load_by_its_rate_and_evens_it_out():
    moved, measured = dataclasses.replace(EXPERTS, bias_rate=0.1).post_update(
        {'experts': {'router_bias': jnp.zeros((1, 4))}}, {'load': jnp.array([[0.4, 0.25, 0.2, 0.15]])})
    np.testing.assert_allclose(moved['experts']['router_bias'], [[-0.1, 0, 0.1, 0.1]], atol=1e-6)
    np.testing.assert_allclose(measured['load'], 0.4 * EXPERTS.count)
    model = sparse(Experts(count=8, top_k=2, ff=4, router='sigmoid', balance=0.0, bias_rate=0.02))
    tx = optim.SGD(peak=0.0).make(100)
    params = parameters(model)
    tokens = np.random.default_rng(0).integers(0, 50, (8, 12))
    state = train.State(jnp.int32(0), params, tx.init(params), jnp.int32(0))
    step = jax.jit(train.make_step(partial(train.NextToken().loss, model), tx, post_update=model.post_update))
    loads = []
    for _ in range(60):
        state, measured = step(state, {'inputs': tokens, 'targets': tokens})
        loads.append(float(measured['load']))
    assert np.mean(loads[-5:]) < 0.75 * loads[0]
    same = jax.tree.map(lambda a, b: bool(np.all(a == b)), state.params, params)
    assert not same['blocks']['experts'].pop('router_bias') and all(jax.tree.leaves(same))


@pytest.mark.parametrize('fields, words', [
    ({'top_k': 9}, ['top_k=9', 'count=8', 'try top_k=8']), ({'ff': 0}, ['ff=0', 'try ff=1']),
    ({'capacity_factor': 0.5}, ['capacity_factor=0.5', 'try capacity_factor=1.5']),
])
def test_bad_fields_are_one_clear_line(fields, words):
    with pytest.raises(config.Error) as caught:
        dataclasses.replace(EXPERTS, **fields)
    assert all(word in str(caught.value) for word in words)


def test_a_decoder_of_experts_trains_over_a_mesh():
    model = sparse(dataclasses.replace(EXPERTS, shared=1, z_loss=1e-3, bias_rate=1e-3))
    mesh = sharding.make_mesh({'fsdp': 2, 'expert': 4})
    places = sharding.mirror(jax.eval_shape(model.init, jax.random.key(0)), model.axes(), mesh)
    tokens = np.random.default_rng(0).integers(0, 50, (8, 12))
    batch = {'inputs': tokens, 'targets': tokens}
    slope = jax.value_and_grad(lambda params, batch: train.NextToken().loss(model, params, batch)[0])
    params = parameters(model)
    expected = architectures.jit(slope)(params, batch)
    with jax.set_mesh(mesh):
        found = architectures.jit(slope, out_shardings=(NamedSharding(mesh, P()), places))(
            jax.device_put(params, places), sharding.put(batch, mesh))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), found[1], expected[1])


def test_their_losses_join_the_loss_by_their_coefficients():
    experts = dataclasses.replace(EXPERTS, balance=0.3, z_loss=0.2)
    model = sparse(experts)
    params, tokens = parameters(model), np.random.default_rng(0).integers(0, 50, (2, 12))
    total, metrics = architectures.jit(partial(train.NextToken().loss, model))(
        params, {'inputs': tokens, 'targets': tokens})
    added = 0.3 * metrics['balance'] + 0.2 * metrics['router_z']
    np.testing.assert_allclose(total, metrics['loss'] + added, rtol=1e-6)
    assert added > 0.1 and metrics['load'].shape == (2, 8)


def test_a_decoder_of_experts_decodes_as_it_reads():
    model = sparse(VARIANTS['sigmoid'])
    params, tokens = parameters(model), np.random.default_rng(0).integers(0, 50, (2, 6)).astype(np.int32)
    whole = architectures.jit(model.logits)(params, tokens)
    logits, cache = model.prefill(params, tokens[:, :5], np.array([5, 5]), 6)
    np.testing.assert_allclose(logits, whole[:, 4], atol=1e-4)
    np.testing.assert_allclose(model.decode(params, tokens[:, 5], cache)[0], whole[:, 5], atol=1e-4)


def padded_batch(rows=8, length=12):
    """Returns a batch of which a random half of each row's end is padding of token 0, weight 0."""
    rng = np.random.default_rng(0)
    real = np.arange(length) < rng.integers(2, length + 1, (rows, 1))
    tokens = {name: rng.integers(1, 50, (rows, length)) * real for name in ('inputs', 'targets')}
    return {**tokens, 'segments': real.astype(np.int32), 'positions': np.arange(length) * real,
            'weights': real.astype(np.float32)}


def test_padding_counts_neither_in_the_load_nor_in_the_losses_of_experts():
    """Real tokens all choose experts 0 and 1, padding 6 and 7."""
    params = weights_of(EXPERTS)
    params['router'] = np.zeros_like(params['router'])
    params['router'][0] = np.arange(8, 0, -1)
    real = np.arange(6) < np.array([[6], [3], [2], [2]])
    x = np.where(real[..., None], np.abs(X), -np.abs(X))
    context = Context(None, token_weights=jnp.asarray(real / real.mean(), jnp.float32))
    counted = Scope(lambda _, x: EXPERTS(x, None, context, execution=Execution(), init=normal(0.02))).apply(
        {'params': {'experts': params}}, x)[1]
    alone = apply(EXPERTS, params, x[real][None])[1]
    np.testing.assert_allclose(counted['load'], [0.5, 0.5, 0, 0, 0, 0, 0, 0], atol=1e-6)
    assert apply(EXPERTS, params, x)[1]['load'][7] > 0.2
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5), counted, alone)


def test_more_padding_changes_no_term_of_the_loss():
    model, batch = sparse(dataclasses.replace(EXPERTS, balance=0.3, z_loss=0.2)), padded_batch()
    params, run = parameters(sparse(EXPERTS)), architectures.jit(partial(train.NextToken().loss, model))
    longer = {name: np.pad(values, ((0, 8), (0, 0))) for name, values in batch.items()}
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5), run(params, batch), run(params, longer))


@pytest.mark.parametrize('sizes', [{}, {'data': 2}, {'stage': 2}], ids=str)
def test_micro_batches_give_all_of_one_big_batch_but_the_balance(sizes):
    """The balance is a product of two means: of micro-batches it is the mean by their tokens, as Experts say."""
    model = sparse(dataclasses.replace(EXPERTS, balance=0.3, z_loss=0.2), depth=2)
    params, batch, key = parameters(model), padded_batch(), jax.random.key(0)
    loss = partial(train.NextToken().loss, model)
    big = architectures.jit(loss)(params, batch)[1]
    halves = [architectures.jit(loss)(params, {name: values[i::2] for name, values in batch.items()})[1]
              for i in range(2)]
    mesh = sharding.make_mesh(sizes or {'data': 1}, jax.devices()[:2 if sizes else 1])
    places = sharding.mirror(params, model.axes(), mesh)
    with jax.set_mesh(mesh):
        run = architectures.jit(loss) if 'stage' in sizes else architectures.jit(train.accumulated(loss, 2))
        args = (jax.device_put(params, places), sharding.put(batch, mesh))
        small = run(*args)[1] if 'stage' in sizes else run(*args, key)[1]
    weights = [float(half['weight']) for half in halves]
    assert weights[0] != weights[1]
    for name in ('loss', 'load', 'router_z'):
        np.testing.assert_allclose(small[name], big[name], rtol=2e-5, atol=1e-6, err_msg=name)
    own = np.average([float(half['balance']) for half in halves], weights=weights)
    np.testing.assert_allclose(small['balance'], own, rtol=2e-5)
    assert 1e-3 < abs(own / big['balance'] - 1) < 0.2  # 25 and 17 tokens
