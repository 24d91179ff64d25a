"""Muon, Adafactor, averages of parameters and clipping, against numpy, linear algebra and optax."""
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stacks

from lm import optim, trees
from lm.optim import transforms


def test_average_equals_numpy_and_none_is_the_parameters():
    optimizer = optim.SGD(ema=0.3, weight_decay=0.0)
    tx, gradients = stacks.compiled(optimizer, 8), [stacks.draw(seed) for seed in range(1, 7)]
    average = np.asarray(stacks.draw(0)['blocks']['mlp']['up'], np.float64)
    for t in range(6):
        params, state = stacks.run(tx, stacks.draw(0), gradients[:t + 1])
        kept = min(0.3, (1 + t) / (10 + t))
        average = kept * average + (1 - kept) * np.asarray(params['blocks']['mlp']['up'], np.float64)
    np.testing.assert_allclose(optimizer.averaged(state, params)['blocks']['mlp']['up'], average, rtol=1e-5, atol=1e-6)
    plain = dataclasses.replace(optimizer, ema=0.0)
    unaveraged, state = stacks.run(stacks.compiled(plain, 8), stacks.draw(0), gradients)
    stacks.close(unaveraged, params, rtol=0)
    assert plain.averaged(state, unaveraged) is unaveraged


def test_schedule_free_equals_numpy_and_averages_to_x():
    o = optim.ScheduleFree(peak=0.03, schedule=optim.Constant(warmup=2), weight_decay=0.2, clip=0.0)
    gradients = [stacks.draw(seed) for seed in range(1, 7)]
    params, state = stacks.run(stacks.compiled(o, 10), stacks.draw(0), gradients)
    x = z = y = np.asarray(stacks.draw(0)['blocks']['mlp']['up'], np.float64)
    moment, weight = 0.0, 0.0
    for t, grads in enumerate(gradients):
        g = np.asarray(grads['blocks']['mlp']['up'], np.float64)
        rate = 0.03 * min(1, (t + 1) / 3)
        moment = o.b2 * moment + (1 - o.b2) * g ** 2
        z = z - rate * (g / (np.sqrt(moment / (1 - o.b2 ** (t + 1))) + o.eps) + 0.2 * y)
        weight += rate ** 2
        x = x + rate ** 2 / weight * (z - x)
        y = o.b1 * x + (1 - o.b1) * z
    np.testing.assert_allclose(params['blocks']['mlp']['up'], y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(o.averaged(state, params)['blocks']['mlp']['up'], x, rtol=1e-4, atol=1e-5)


def test_muon_makes_every_layers_matrix_orthogonal():
    """One Newton-Schulz run ends with singular values near 1 (0.68 to 1.13 for its coefficients), not at 1."""
    optimizer = optim.Muon(peak=1.0, schedule=optim.Constant(), weight_decay=0.0, clip=0.0, rms=0.0)
    moves = stacks.one(stacks.compiled(optimizer), stacks.draw(0), stacks.draw(1))
    shapes = {'query': (4, 10), 'out': (10, 4), 'up': (4, 6), 'down': (6, 4)}
    for name, move in trees.flatten(moves).items():
        if (key := name.split('/')[-1]) in shapes:
            rows, columns = shapes[key]
            for layer, grads in zip(move, trees.flatten(stacks.draw(1))[name], strict=True):
                u, _, v = np.linalg.svd(grads.reshape(rows, columns), full_matrices=False)
                got = -np.asarray(layer).reshape(rows, columns) / max(1, columns / rows) ** 0.5
                inside = u.T @ got @ v.T
                np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-4)
                assert np.all((np.diag(inside) > 0.6) & (np.diag(inside) < 1.3))


def test_muons_stack_is_the_reshaped_matrix_of_optax():
    optimizer = optim.Muon(peak=0.5, schedule=optim.Constant(), weight_decay=0.1, clip=0.0)
    gradients = [stacks.draw(seed) for seed in range(1, 4)]
    after, _ = stacks.run(stacks.compiled(optimizer), stacks.draw(0), gradients)
    shapes = {'query': (4, 10), 'out': (10, 4)}
    plain = stacks.jitted(optax.contrib.muon(0.5, weight_decay=0.1, consistent_rms=0.2))
    for key, shape in shapes.items():
        for layer in range(3):
            def take(tree):
                return {'w': np.asarray(tree['blocks']['attention'][key][layer]).reshape(shape)}  # noqa: B023
            expected, _ = stacks.run(plain, take(stacks.draw(0)), [take(grads) for grads in gradients])
            stacks.close(take(after), expected, rtol=1e-4, atol=1e-5)


def test_muon_leaves_tables_and_vectors_to_adamw():
    settings = dict(peak=0.01, clip=0.0, weight_decay=0.1)
    gradients = [stacks.draw(seed) for seed in range(1, 4)]
    muon, slow, adam = (trees.flatten(stacks.run(stacks.compiled(o), stacks.draw(0), gradients)[0]) for o in (
        optim.Muon(**settings), optim.Muon(**settings, adam_rate=0.5), optim.AdamW(**settings, rates=(('', 0.5),))))
    for name, value in slow.items():
        ours = name.split('/')[-1] not in ('tokens', 'query_bias', 'norm1_scale')
        assert np.allclose(value, muon[name], rtol=1e-6) == ours
        assert np.allclose(value, adam[name], rtol=1e-6) != ours


def test_muons_update_has_the_same_size_for_every_shape():
    rng = np.random.default_rng(0)
    grads = {str(shape): rng.standard_normal(shape).astype(np.float32) for shape in ((48, 48), (48, 192), (192, 48))}
    params = jax.tree.map(np.zeros_like, grads)
    for move in stacks.one(stacks.jitted(optim.Muon(peak=1.0, weight_decay=0.0).make(5)), params, grads).values():
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(move))), 0.2, rtol=0.2)


def test_muon_without_axes_takes_matrices_and_refuses_to_guess():
    optim.Muon().make(5).init({'w': jnp.ones((4, 3)), 'b': jnp.ones(3)})
    with pytest.raises(ValueError, match=r'^attention/query has 4 axes and Muon .*; try make\(steps, axes\)'):
        optim.Muon().make(5).init({'attention': {'query': jnp.ones((2, 4, 2, 2))}})


def test_adafactor_equals_numpy_on_one_matrix():
    o = optim.Adafactor(peak=0.1, schedule=optim.Constant())
    params, *gradients = ({'w': tree['embed']['tokens'], 'b': tree['blocks']['norm1_scale'][0]}
                          for tree in map(stacks.draw, range(4)))
    after, state = stacks.run(stacks.jitted(o.make(5)), params, gradients)
    assert state.direction.rows['w'].shape == (7, 1) and state.direction.columns['w'].shape == (1, 4)
    expected = {key: np.asarray(p, np.float64) for key, p in params.items()}
    row, column, full = np.zeros((7, 1)), np.zeros((1, 4)), np.zeros(4)
    for t, grads in enumerate(gradients, 1):
        kept = 1 - t ** -0.8
        w, b = (np.asarray(grads[key], np.float64) for key in 'wb')
        row = kept * row + (1 - kept) * (w ** 2).mean(1, keepdims=True)
        column = kept * column + (1 - kept) * (w ** 2).mean(0, keepdims=True)
        full = kept * full + (1 - kept) * b ** 2
        for key, u in (('w', w / np.sqrt(row * column / row.mean())), ('b', b / np.sqrt(full))):
            u = u / max(1, np.sqrt(np.mean(u ** 2)))
            expected[key] = expected[key] - 0.1 * u * max(1e-3, np.sqrt(np.mean(expected[key] ** 2)))
    stacks.close(after, expected, rtol=1e-5)


def test_clip_is_safe_where_the_gradient_is_zero():
    zero = jax.tree.map(np.zeros_like, stacks.draw(0))
    stacks.close(transforms.clip(zero, 1.0), zero, rtol=0)


def test_rounding_to_bfloat16_is_right_in_the_mean_and_exact_where_it_can_be():
    x = jnp.full(4096, 1 + 1 / 512)  # a quarter of the way from 1 to the next bfloat16
    narrow = transforms.to_storage((x, jnp.float32(1 + 1 / 512)), 'bfloat16', 3)
    assert narrow[0].dtype == jnp.bfloat16 and narrow[1].dtype == jnp.float32
    assert set(np.unique(narrow[0].astype(np.float32))) == {1, 1 + 1 / 128}
    np.testing.assert_allclose(narrow[0].astype(np.float32).mean(), x[0], atol=4 / 128 / 64)
    exact = jnp.array([0.0, -0.0, 1.5, -3e38, jnp.inf, jnp.nan])
    np.testing.assert_array_equal(transforms.to_storage(exact, 'bfloat16', 0).astype(np.float32),
                                  exact.astype(jnp.bfloat16).astype(np.float32))


def test_moments_in_bfloat16_grow_by_increments_below_their_precision():
    optimizer = optim.Adam(peak=0.0, b2=0.999, clip=0.0, moments='bfloat16')
    params = {'w': jnp.zeros((64, 64))}
    tx = optimizer.make(10)

    def step(state, _):
        return tx.update({'w': jnp.ones((64, 64))}, state, params)[1], None
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, length=1000))(tx.init(params))
    second = state.direction.nu['w']
    assert second.dtype == jnp.bfloat16
    np.testing.assert_allclose(second.astype(np.float32).mean(), 1 - 0.999 ** 1000, rtol=0.01)
