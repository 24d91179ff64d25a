"""Optimizers against numpy in float64, schedules against closed forms, and the laws both keep."""
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import config, layouts, optim, trees, updates

SHAPES = {'embed': {'tokens': (7, 4)},
          'blocks': {'attention': {'query': (3, 4, 2, 5), 'query_bias': (3, 2, 5), 'out': (3, 2, 5, 4)},
                     'mlp': {'up': (3, 4, 6), 'down': (3, 6, 4)}, 'norm1_scale': (3, 4)}}
AXES = {'embed': {'tokens': ('vocab', 'embed')},
        'blocks': {'attention': {'query': ('layers', 'embed', 'heads', 'head_dim'),
                                 'query_bias': ('layers', 'heads', 'head_dim'),
                                 'out': ('layers', 'heads', 'head_dim', 'embed')},
                   'mlp': {'up': ('layers', 'embed', 'ff'), 'down': ('layers', 'ff', 'embed')},
                   'norm1_scale': ('layers', 'norm')}}
MATRICES = ('tokens', 'query', 'out', 'up', 'down')
ALL = (optim.SGD(nesterov=True), optim.AdamW(ema=0.9), optim.AdaGrad(), optim.Adafactor(), optim.Lion(), optim.Muon(),
       optim.ScheduleFree())


def named(optimizer):
    return type(optimizer).__name__


def draw(seed, scale=1.0):
    """Returns a tree of float32 numpy arrays of the shapes above."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: (scale * rng.standard_normal(shape)).astype(np.float32), SHAPES,
                        is_leaf=lambda node: isinstance(node, tuple))


def jitted(tx):
    return optax.GradientTransformation(jax.jit(tx.init), jax.jit(tx.update))


@functools.cache
def compiled(optimizer, steps=5):
    """Returns the compiled transformation of an optimizer for the tree above."""
    return jitted(optimizer.make(steps, AXES))


def run(tx, params, gradients):
    """Returns (params, state) after one step for each tree of gradients."""
    state = tx.init(params)
    for grads in gradients:
        moves, state = tx.update(grads, state, params)
        params = jax.tree.map(np.add, params, moves)
    return params, state


def one(tx, params, grads):
    """Returns the first updates."""
    return tx.update(grads, tx.init(params), params)[0]


def close(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


class Oracle:
    """An optimizer in numpy float64 over {name: array}; `directions` holds one formula per optimizer."""

    def __init__(self, optimizer, params, steps):
        self.o, self.steps, self.t = optimizer, steps, 0
        self.params = {name: np.asarray(p, np.float64) for name, p in trees.flatten(params).items()}
        start = optimizer.initial if isinstance(optimizer, optim.AdaGrad) else 0.0
        self.m = {name: np.zeros_like(p) for name, p in self.params.items()}
        self.v = {name: np.full_like(p, start) for name, p in self.params.items()}

    def rate(self):
        warmup, end = self.o.schedule.warmup, self.o.schedule.end
        if self.t < warmup:
            return self.o.peak * (self.t + 1) / (warmup + 1)
        progress = (self.t - warmup) / (self.steps - warmup)
        return self.o.peak * (end + (1 - end) * 0.5 * (1 + np.cos(np.pi * progress)))

    def step(self, grads):
        grads = {name: np.asarray(g, np.float64) for name, g in trees.flatten(grads).items()}
        norm = np.sqrt(sum(np.sum(g ** 2) for g in grads.values()))
        for name, g in grads.items():
            decay = self.o.weight_decay if name.split('/')[-1] in MATRICES else 0.0
            g = g * min(1, self.o.clip / norm) if self.o.clip else g
            self.params[name] -= self.rate() * (self.direction(name, g) + decay * self.params[name])
        self.t += 1

    def direction(self, name, g):
        o, m, v = self.o, self.m, self.v
        if isinstance(o, optim.SGD):
            m[name] = o.momentum * m[name] + g
            return g + o.momentum * m[name] if o.nesterov else m[name]
        if isinstance(o, optim.Lion):
            mixed = o.b1 * m[name] + (1 - o.b1) * g
            m[name] = o.b2 * m[name] + (1 - o.b2) * g
            return np.sign(mixed)
        if isinstance(o, optim.AdaGrad):
            v[name] += g ** 2
            return g / np.sqrt(v[name] + o.eps)
        m[name] = o.b1 * m[name] + (1 - o.b1) * g
        v[name] = o.b2 * v[name] + (1 - o.b2) * g ** 2
        fixed = np.sqrt(v[name] / (1 - o.b2 ** (self.t + 1)))
        return m[name] / (1 - o.b1 ** (self.t + 1)) / (fixed + o.eps)


SETTINGS = dict(peak=3e-2, schedule=optim.Cosine(warmup=2, end=0.2), weight_decay=0.3)


@pytest.mark.parametrize('optimizer', [
    optim.SGD(**SETTINGS, clip=0.5), optim.SGD(**SETTINGS, nesterov=True, clip=1e6),
    optim.SGD(**SETTINGS, momentum=0.0, clip=0.0), optim.AdamW(**SETTINGS, clip=0.5), optim.AdaGrad(**SETTINGS),
    optim.Lion(**SETTINGS)], ids=named)
def test_five_steps_equal_numpy_in_float64(optimizer):
    params, gradients = draw(0), [draw(seed) for seed in range(1, 6)]
    oracle = Oracle(optimizer, params, 6)
    for grads in gradients:
        oracle.step(grads)
    got, _ = run(compiled(optimizer, 6), params, gradients)
    close(trees.flatten(got), oracle.params, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('optimizer', ALL, ids=named)
def test_each_optimizer_fits_a_regression(optimizer):
    rng = np.random.default_rng(0)
    x, true = rng.standard_normal((64, 8)), rng.standard_normal((8, 4))
    y = x @ true + 1
    tx = dataclasses.replace(optimizer, weight_decay=0.0, peak=0.5 if named(optimizer) == 'AdaGrad' else 0.05).make(200)

    def loss(params):
        return jnp.mean(jnp.square(x @ params['w'] + params['b'] - y))

    @jax.jit
    def train(params):
        def body(carry, _):
            params, state = carry
            moves, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, moves), state), None
        (params, state), _ = jax.lax.scan(body, (params, tx.init(params)), length=200)
        return optimizer.averaged(state, params)

    params = {'w': jnp.full((8, 4), 0.1), 'b': jnp.full(4, 0.1)}
    assert loss(train(params)) < 0.05 * loss(params)


@pytest.mark.parametrize('optimizer', ALL, ids=named)
def test_a_stack_of_layers_is_updated_like_each_layer_alone(optimizer):
    optimizer = dataclasses.replace(optimizer, clip=0.0, frozen='tokens|mlp|bias')
    gradients = [draw(seed) for seed in range(1, 4)]
    stacked, _ = run(compiled(optimizer), draw(0), gradients)
    alone = dataclasses.replace(optimizer, frozen='mlp|bias').make(5, jax.tree.map(
        lambda names: names[1:], AXES['blocks'], is_leaf=lambda node: isinstance(node, tuple)))
    alone = jitted(alone)
    for layer in range(3):
        def take(tree):
            return jax.tree.map(lambda leaf: leaf[layer], tree['blocks'])  # noqa: B023
        single, _ = run(alone, take(draw(0)), [take(grads) for grads in gradients])
        close(take(stacked), single, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('optimizer', ALL, ids=named)
def test_frozen_parameters_keep_every_bit_and_have_no_state(optimizer):
    optimizer = dataclasses.replace(optimizer, clip=0.0, frozen='tokens|mlp|bias')
    params = draw(0)
    params['embed']['tokens'][0] = -0.0
    after, state = run(compiled(optimizer), params, [draw(1), draw(2)])
    averaged = optimizer.averaged(state, after)
    for name in ('embed/tokens', 'blocks/mlp/up', 'blocks/mlp/down', 'blocks/attention/query_bias'):
        assert trees.flatten(after)[name].tobytes() == trees.flatten(params)[name].tobytes()
        assert trees.flatten(averaged)[name].tobytes() == trees.flatten(params)[name].tobytes()
        assert not any(held.endswith(name) for held in trees.flatten(state))
    assert not np.array_equal(after['blocks']['norm1_scale'], params['blocks']['norm1_scale'])


@pytest.mark.parametrize('optimizer', ALL, ids=named)
def test_state_is_arrays_that_mirror_their_parameters(optimizer):
    params = trees.flatten(draw(0))
    for name, leaf in trees.flatten(compiled(optimizer).init(draw(0))).items():
        assert isinstance(leaf, jax.Array)
        owner = next((known for known in params if name.endswith(known)), None)
        if owner:
            assert all(held in (1, size) for held, size in zip(leaf.shape, params[owner].shape, strict=True))
        else:
            assert leaf.size <= 3


@pytest.mark.parametrize('optimizer', ALL, ids=named)
def test_a_step_that_is_not_taken_leaves_no_trace(optimizer):
    tx, params = compiled(optimizer), draw(0)
    _, state = run(tx, params, [draw(1)])
    moves, new = tx.update(jax.tree.map(lambda g: g * np.nan, draw(2)), state, params)
    kept = jax.tree.map(lambda a, b: jnp.where(False, a, b), new, state)
    close(kept, state, rtol=0)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(moves))


@pytest.mark.parametrize('optimizer', ALL, ids=named)
def test_vmap_over_seeds_equals_one_after_the_other(optimizer):
    tx = optimizer.make(5, AXES)
    params, grads = draw(0), draw(1)
    two = jax.tree.map(lambda p, q: np.stack([p, q]), params, draw(2))
    grads2 = jax.tree.map(lambda p, q: np.stack([p, q]), grads, draw(3))
    moves = jax.jit(jax.vmap(lambda p, g: one(tx, p, g)))(two, grads2)
    for seed, (p, g) in enumerate([(params, grads), (draw(2), draw(3))]):
        close(jax.tree.map(lambda leaf: leaf[seed], moves), one(compiled(optimizer), p, g), rtol=1e-3, atol=1e-6)  # noqa: B023


@pytest.mark.parametrize('optimizer', [optim.AdamW(ema=0.9), optim.ScheduleFree()], ids=named)
def test_parameters_can_be_donated_beside_their_average(optimizer):
    tx, params = optimizer.make(5, AXES), jax.tree.map(jnp.asarray, draw(0))
    moves, _ = jax.jit(tx.update, donate_argnums=(1, 2))(draw(1), tx.init(params), params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moves))


def test_all_matrices_decay_by_default_and_biases_and_norms_do_not():
    params, zero = draw(0), jax.tree.map(np.zeros_like, draw(0))
    optimizer = optim.AdamW(peak=0.1, schedule=optim.Constant(), weight_decay=0.5)
    after, _ = run(compiled(optimizer), params, [zero])
    for name, p in trees.flatten(params).items():
        factor = 0.95 if name.split('/')[-1] in MATRICES else 1.0
        np.testing.assert_allclose(trees.flatten(after)[name], factor * p, rtol=1e-6)


@pytest.mark.parametrize('optimizer', [optim.SGD(), optim.Adafactor(), optim.Muon(), optim.ScheduleFree()],
                         ids=named)
def test_decay_by_regex_means_the_same_for_every_optimizer(optimizer):
    optimizer = dataclasses.replace(optimizer, peak=0.1, schedule=optim.Linear(end=0.5), weight_decay=0.5,
                                    decay='norm|query$')
    params, zero = draw(0), jax.tree.map(np.zeros_like, draw(0))
    after, _ = run(compiled(optimizer), params, [zero])
    for name, p in trees.flatten(params).items():
        factor = 0.95 if 'norm' in name or name.endswith('query') else 1.0
        np.testing.assert_allclose(trees.flatten(after)[name], factor * p, rtol=1e-5)


def test_rates_multiply_the_update_decay_included():
    plain = optim.AdamW(clip=0.0)
    scaled = dataclasses.replace(plain, rates=(('mlp', 0.5), ('up', 0.5), ('norm', 0.0)))
    first, second = (one(compiled(o), draw(0), draw(1)) for o in (plain, scaled))
    factors = {'blocks/mlp/up': 0.25, 'blocks/mlp/down': 0.5, 'blocks/norm1_scale': 0.0}
    for name, move in trees.flatten(first).items():
        np.testing.assert_allclose(trees.flatten(second)[name], factors.get(name, 1.0) * move, rtol=1e-6)


def test_clip_sees_the_parameters_that_train_only():
    optimizer = optim.SGD(peak=1.0, momentum=0.0, schedule=optim.Constant(), clip=0.5, frozen='tokens')
    grads = draw(1)
    grads['embed']['tokens'] *= 1e6
    moves = one(compiled(optimizer), draw(0), grads)
    np.testing.assert_allclose(trees.norm(moves), 0.5, rtol=1e-5)


def test_average_equals_numpy_and_none_is_the_parameters():
    optimizer = optim.SGD(ema=0.3, weight_decay=0.0)
    tx, gradients = compiled(optimizer, 8), [draw(seed) for seed in range(1, 7)]
    average = np.asarray(draw(0)['blocks']['mlp']['up'], np.float64)
    for t in range(6):
        params, state = run(tx, draw(0), gradients[:t + 1])
        kept = min(0.3, (1 + t) / (10 + t))
        average = kept * average + (1 - kept) * np.asarray(params['blocks']['mlp']['up'], np.float64)
    np.testing.assert_allclose(optimizer.averaged(state, params)['blocks']['mlp']['up'], average, rtol=1e-5, atol=1e-6)
    plain = dataclasses.replace(optimizer, ema=0.0)
    unaveraged, state = run(compiled(plain, 8), draw(0), gradients)
    close(unaveraged, params, rtol=0)
    assert plain.averaged(state, unaveraged) is unaveraged


def test_schedule_free_equals_numpy_and_averages_to_x():
    o = optim.ScheduleFree(peak=0.03, schedule=optim.Constant(warmup=2), weight_decay=0.2, clip=0.0)
    gradients = [draw(seed) for seed in range(1, 7)]
    params, state = run(compiled(o, 10), draw(0), gradients)
    x = z = y = np.asarray(draw(0)['blocks']['mlp']['up'], np.float64)
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


@pytest.mark.parametrize('names, inner, outer', [
    (('layers', 'embed', 'heads', 'head_dim'), (1,), (2, 3)),
    (('layers', 'heads', 'head_dim', 'embed'), (1, 2), (3,)),
    (('layers', 'experts', 'ff', 'embed'), (2,), (3,)),
    (('vocab', 'embed'), (0,), (1,)),
    (('embed', 'embed.out'), (0,), (1,)),
    (('heads', 'embed', 'head_dim'), (1,), (0, 2)),
    (('position', 'heads'), (0,), (1,)),
    (('layers', 'rank', 'heads', 'head_dim'), (1,), (2, 3)),
    (('layers', 'heads', 'head_dim'), (), (1, 2)),
    (('layers', 'norm'), (), (1,)),
    (('embed',), (), (0,)),
    (('layers',), (), ()),
    ((), (), ()),
])
def test_layout_finds_the_matrix(names, inner, outer):
    assert layouts.layout(np.zeros((2,) * len(names)), names) == layouts.Layout(names, inner, outer)


def test_muon_makes_every_layers_matrix_orthogonal():
    """One Newton-Schulz run ends with singular values near 1 (0.68 to 1.13 for its coefficients), not at 1."""
    optimizer = optim.Muon(peak=1.0, schedule=optim.Constant(), weight_decay=0.0, clip=0.0, rms=0.0)
    moves = one(compiled(optimizer), draw(0), draw(1))
    shapes = {'query': (4, 10), 'out': (10, 4), 'up': (4, 6), 'down': (6, 4)}
    for name, move in trees.flatten(moves).items():
        if (key := name.split('/')[-1]) in shapes:
            rows, columns = shapes[key]
            for layer, grads in zip(move, trees.flatten(draw(1))[name], strict=True):
                u, _, v = np.linalg.svd(grads.reshape(rows, columns), full_matrices=False)
                got = -np.asarray(layer).reshape(rows, columns) / max(1, columns / rows) ** 0.5
                inside = u.T @ got @ v.T
                np.testing.assert_allclose(inside, np.diag(np.diag(inside)), atol=1e-4)
                assert np.all((np.diag(inside) > 0.6) & (np.diag(inside) < 1.3))


def test_muons_stack_is_the_reshaped_matrix_of_optax():
    optimizer = optim.Muon(peak=0.5, schedule=optim.Constant(), weight_decay=0.1, clip=0.0)
    gradients = [draw(seed) for seed in range(1, 4)]
    after, _ = run(compiled(optimizer), draw(0), gradients)
    shapes = {'query': (4, 10), 'out': (10, 4)}
    plain = jitted(optax.contrib.muon(0.5, weight_decay=0.1, consistent_rms=0.2))
    for key, shape in shapes.items():
        for layer in range(3):
            def take(tree):
                return {'w': np.asarray(tree['blocks']['attention'][key][layer]).reshape(shape)}  # noqa: B023
            expected, _ = run(plain, take(draw(0)), [take(grads) for grads in gradients])
            close(take(after), expected, rtol=1e-4, atol=1e-5)


def test_muon_leaves_tables_and_vectors_to_adamw():
    settings = dict(peak=0.01, clip=0.0, weight_decay=0.1)
    gradients = [draw(seed) for seed in range(1, 4)]
    muon, slow, adam = (trees.flatten(run(compiled(o), draw(0), gradients)[0]) for o in (
        optim.Muon(**settings), optim.Muon(**settings, adam_rate=0.5), optim.AdamW(**settings, rates=(('', 0.5),))))
    for name, value in slow.items():
        ours = name.split('/')[-1] not in ('tokens', 'query_bias', 'norm1_scale')
        assert np.allclose(value, muon[name], rtol=1e-6) == ours
        assert np.allclose(value, adam[name], rtol=1e-6) != ours


def test_muons_update_has_the_same_size_for_every_shape():
    rng = np.random.default_rng(0)
    grads = {str(shape): rng.standard_normal(shape).astype(np.float32) for shape in ((48, 48), (48, 192), (192, 48))}
    params = jax.tree.map(np.zeros_like, grads)
    for move in one(jitted(optim.Muon(peak=1.0, weight_decay=0.0).make(5)), params, grads).values():
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(move))), 0.2, rtol=0.2)


def test_muon_without_axes_takes_matrices_and_refuses_to_guess():
    optim.Muon().make(5).init({'w': jnp.ones((4, 3)), 'b': jnp.ones(3)})
    with pytest.raises(ValueError, match=r'^attention/query has 4 axes and Muon .*; try make\(steps, axes\)'):
        optim.Muon().make(5).init({'attention': {'query': jnp.ones((2, 4, 2, 2))}})


def test_adafactor_equals_numpy_on_one_matrix():
    o = optim.Adafactor(peak=0.1, schedule=optim.Constant())
    params = {'w': draw(0)['embed']['tokens'], 'b': draw(0)['blocks']['norm1_scale'][0]}
    gradients = [{'w': draw(s)['embed']['tokens'], 'b': draw(s)['blocks']['norm1_scale'][0]} for s in (1, 2, 3)]
    after, state = run(jitted(o.make(5)), params, gradients)
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
    close(after, expected, rtol=1e-5)


STEPS = 100
CURVES = [
    (optim.Constant(), lambda p: 1.0),
    (optim.Linear(end=0.2), lambda p: 1 - 0.8 * p),
    (optim.Cosine(end=0.2), lambda p: 0.2 + 0.4 * (1 + np.cos(np.pi * p))),
]


@pytest.mark.parametrize('schedule, curve', CURVES, ids=lambda value: named(value))
@pytest.mark.parametrize('warmup', [0, 1, 20])
def test_schedules_follow_their_closed_forms(schedule, curve, warmup):
    rate = dataclasses.replace(schedule, warmup=warmup).make(3.0, STEPS)
    np.testing.assert_allclose(rate(0), 3 / (warmup + 1), rtol=1e-6)
    np.testing.assert_allclose(rate(warmup // 2), 3 * (warmup // 2 + 1) / (warmup + 1), rtol=1e-6)
    np.testing.assert_allclose(rate(warmup), 3, rtol=1e-6)
    middle = (STEPS + warmup) // 2
    np.testing.assert_allclose(rate(middle), 3 * curve((middle - warmup) / (STEPS - warmup)), rtol=1e-5)
    np.testing.assert_allclose(rate(jnp.array([STEPS, 2 * STEPS])), 3 * curve(1.0), rtol=1e-5)


def test_wsd_is_flat_then_falls():
    rate = optim.WSD(warmup=10, cooldown=0.2, end=0.1).make(2.0, STEPS)
    rates = rate(jnp.array([0, 10, 50, 80, 90, 100, 120]))
    np.testing.assert_allclose(rates, [2 / 11, 2, 2, 2, 1.1, 0.2, 0.2], rtol=1e-5)
    root = optim.WSD(cooldown=0.2, power=0.5).make(2.0, STEPS)
    np.testing.assert_allclose(root(jnp.array([80, 85, 100])), [2, 1, 0], atol=1e-6)
    np.testing.assert_allclose(optim.WSD(cooldown=0.0).make(2.0, STEPS)(99), 2.0)


def test_inverse_square_root_halves_at_four_times_the_warmup():
    rate = optim.InverseSqrt(warmup=9).make(2.0, STEPS)
    np.testing.assert_allclose(rate(jnp.array([0, 4, 9, 39, 89])), [0.2, 1, 2, 1, 2 / 3], rtol=1e-6)
    np.testing.assert_allclose(optim.InverseSqrt().make(2.0, STEPS)(jnp.array([0, 3])), [2, 1], rtol=1e-6)


def test_the_rate_of_an_optimizer_is_its_schedules():
    optimizer = optim.AdamW(peak=0.5, schedule=optim.Linear(warmup=3))
    np.testing.assert_allclose(optimizer.rate(10)(5), optim.Linear(warmup=3).make(0.5, 10)(5))


@pytest.mark.parametrize('make, message', [
    (lambda: optim.AdamW(schedule=optim.Cosine(warmup=200)).make(100),
     r'^warmup=200 is more than steps=100; try warmup=10\.$'),
    (lambda: optim.WSD(warmup=90, cooldown=0.2).make(1.0, 100),
     r'^warmup=90 and cooldown=0\.2 overlap in steps=100; try warmup=80\.$'),
    (lambda: optim.WSD(cooldown=20), r'^cooldown=20 is not a fraction'),
    (lambda: optim.WSD(power=0.0), r'^power=0\.0 is not positive'),
    (lambda: optim.Linear(end=1.5), r'^end=1\.5 is not a fraction'),
    (lambda: optim.Cosine(warmup=-1), r'^warmup=-1 is negative'),
    (lambda: optim.AdamW(peak=-1.0), r'^peak=-1\.0 is negative'),
    (lambda: optim.AdamW(ema=1.0), r'^ema=1\.0 is not in \[0, 1\)'),
    (lambda: optim.Muon(momentum=1.5), r'^momentum=1\.5 is not in \[0, 1\)'),
    (lambda: optim.AdamW(decay='('), r"^regex '\(' is not valid"),
    (lambda: optim.AdamW(rates=('embed', 0.1)), r'^rates=.* is not pairs of regex and number; try rates='),
    (lambda: optim.ScheduleFree(ema=0.9), r'^ema=0\.9 is a second average'),
    (lambda: optim.ScheduleFree(b1=0.0), r'^b1=0\.0 leaves ScheduleFree no average'),
    (lambda: optim.AdamW(frozen='.').make(5).init(draw(0)), r"^frozen='\.' freezes all parameters"),
    (lambda: optim.AdamW(decay='atention').make(5, AXES).init(draw(0)),
     r"^regex 'atention' matches none of the 7 parameters; try blocks/attention/"),
    (lambda: optim.AdamW(frozen='embd').make(5, AXES).init(draw(0)), r"^regex 'embd' .*try embed/tokens"),
    (lambda: optim.AdamW(rates=(('norm2', 1.0),)).make(5, AXES).init(draw(0)),
     r"^regex 'norm2' .*try blocks/norm1_scale"),
])
def test_mistakes_are_one_line_with_a_remedy(make, message):
    with pytest.raises(config.Error, match=message) as caught:
        make()
    assert '\n' not in str(caught.value)


def test_clip_is_safe_where_the_gradient_is_zero():
    zero = jax.tree.map(np.zeros_like, draw(0))
    close(updates.clip(zero, 1.0), zero, rtol=0)
