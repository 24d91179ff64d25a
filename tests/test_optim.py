"""Optimizers against numpy in float64, and the laws that all of them keep."""
import dataclasses
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stacks

from lm import config, optim, trees
from lm.optim import matrices

ALL = (optim.SGD(nesterov=True), optim.AdamW(ema=0.9), optim.AdaGrad(), optim.Adafactor(), optim.Lion(), optim.Muon(),
       optim.ScheduleFree())


class Oracle:
    """An optimizer in numpy float64 over {name: array}; `direction` holds one formula per optimizer."""

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
            decay = self.o.weight_decay if name.split('/')[-1] in stacks.MATRICES else 0.0
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
    optim.Lion(**SETTINGS)], ids=stacks.named)
def test_five_steps_equal_numpy_in_float64(optimizer):
    params, gradients = stacks.draw(0), [stacks.draw(seed) for seed in range(1, 6)]
    oracle = Oracle(optimizer, params, 6)
    for grads in gradients:
        oracle.step(grads)
    got, _ = stacks.run(stacks.compiled(optimizer, 6), params, gradients)
    stacks.close(trees.flatten(got), oracle.params, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize('optimizer', ALL, ids=stacks.named)
def test_each_optimizer_fits_a_regression(optimizer):
    rng = np.random.default_rng(0)
    x, true = rng.standard_normal((64, 8)), rng.standard_normal((8, 4))
    y = x @ true + 1
    peak = 0.5 if isinstance(optimizer, optim.AdaGrad) else 0.05
    tx = dataclasses.replace(optimizer, weight_decay=0.0, peak=peak).make(200)

    def loss(params):
        return jnp.mean(jnp.square(x @ params['w'] + params['b'] - y))

    @stacks.jit
    def train(params):
        def body(carry, _):
            params, state = carry
            moves, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, moves), state), None
        (params, state), _ = jax.lax.scan(body, (params, tx.init(params)), length=200)
        return optimizer.averaged(state, params)

    params = {'w': jnp.full((8, 4), 0.1), 'b': jnp.full(4, 0.1)}
    assert loss(train(params)) < 0.05 * loss(params)


@pytest.mark.parametrize('optimizer', ALL, ids=stacks.named)
def test_a_stack_of_layers_is_updated_like_each_layer_alone(optimizer):
    optimizer = dataclasses.replace(optimizer, clip=0.0, frozen='tokens|mlp|bias')
    gradients = [stacks.draw(seed) for seed in range(1, 4)]
    stacked, _ = stacks.run(stacks.compiled(optimizer), stacks.draw(0), gradients)
    alone = dataclasses.replace(optimizer, frozen='mlp|bias').make(5, jax.tree.map(
        lambda names: names[1:], stacks.AXES['blocks'], is_leaf=lambda node: isinstance(node, tuple)))
    alone = stacks.jitted(alone)
    for layer in range(3):
        def take(tree):
            return jax.tree.map(lambda leaf: leaf[layer], tree['blocks'])  # noqa: B023
        single, _ = stacks.run(alone, take(stacks.draw(0)), [take(grads) for grads in gradients])
        stacks.close(take(stacked), single, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('optimizer', ALL, ids=stacks.named)
def test_frozen_parameters_keep_every_bit_and_have_no_state(optimizer):
    optimizer = dataclasses.replace(optimizer, clip=0.0, frozen='tokens|mlp|bias')
    params = stacks.draw(0)
    params['embed']['tokens'][0] = -0.0
    after, state = stacks.run(stacks.compiled(optimizer), params, [stacks.draw(1), stacks.draw(2)])
    averaged = optimizer.averaged(state, after)
    for name in ('embed/tokens', 'blocks/mlp/up', 'blocks/mlp/down', 'blocks/attention/query_bias'):
        assert trees.flatten(after)[name].tobytes() == trees.flatten(params)[name].tobytes()
        assert trees.flatten(averaged)[name].tobytes() == trees.flatten(params)[name].tobytes()
        assert not any(held.endswith(name) for held in trees.flatten(state))
    assert not np.array_equal(after['blocks']['norm1_scale'], params['blocks']['norm1_scale'])


@pytest.mark.parametrize('optimizer', ALL, ids=stacks.named)
def test_state_is_arrays_that_mirror_their_parameters(optimizer):
    params = trees.flatten(stacks.draw(0))
    for name, leaf in trees.flatten(stacks.compiled(optimizer).init(stacks.draw(0))).items():
        assert isinstance(leaf, jax.Array)
        owner = next((known for known in params if name.endswith(known)), None)
        if owner:
            assert all(held in (1, size) for held, size in zip(leaf.shape, params[owner].shape, strict=True))
        else:
            assert leaf.size <= 3


@pytest.mark.parametrize('optimizer', ALL, ids=stacks.named)
def test_a_step_that_is_not_taken_leaves_no_trace(optimizer):
    tx, params = stacks.compiled(optimizer), stacks.draw(0)
    _, state = stacks.run(tx, params, [stacks.draw(1)])
    moves, new = tx.update(jax.tree.map(lambda g: g * np.nan, stacks.draw(2)), state, params)
    kept = jax.tree.map(lambda a, b: jnp.where(False, a, b), new, state)
    stacks.close(kept, state, rtol=0)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(moves))


@pytest.mark.parametrize('optimizer', ALL, ids=stacks.named)
def test_vmap_over_seeds_equals_one_after_the_other(optimizer):
    tx = optimizer.make(5, stacks.AXES)
    params, grads = stacks.draw(0), stacks.draw(1)
    two = jax.tree.map(lambda p, q: np.stack([p, q]), params, stacks.draw(2))
    grads2 = jax.tree.map(lambda p, q: np.stack([p, q]), grads, stacks.draw(3))
    moves = stacks.jit(jax.vmap(lambda p, g: stacks.one(tx, p, g)))(two, grads2)
    for seed, (p, g) in enumerate([(params, grads), (stacks.draw(2), stacks.draw(3))]):
        mine = jax.tree.map(lambda leaf: leaf[seed], moves)  # noqa: B023
        stacks.close(mine, stacks.one(stacks.compiled(optimizer), p, g), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('optimizer', [optim.AdamW(ema=0.9), optim.ScheduleFree()], ids=stacks.named)
def test_parameters_can_be_donated_beside_their_average(optimizer):
    tx, params = optimizer.make(5, stacks.AXES), jax.tree.map(jnp.asarray, stacks.draw(0))
    moves, _ = stacks.jit(tx.update, donate_argnums=(1, 2))(stacks.draw(1), tx.init(params), params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moves))


def test_all_matrices_decay_by_default_and_biases_and_norms_do_not():
    params, zero = stacks.draw(0), jax.tree.map(np.zeros_like, stacks.draw(0))
    optimizer = optim.AdamW(peak=0.1, schedule=optim.Constant(), weight_decay=0.5)
    after, _ = stacks.run(stacks.compiled(optimizer), params, [zero])
    for name, p in trees.flatten(params).items():
        factor = 0.95 if name.split('/')[-1] in stacks.MATRICES else 1.0
        np.testing.assert_allclose(trees.flatten(after)[name], factor * p, rtol=1e-6)


@pytest.mark.parametrize('optimizer', [optim.SGD(), optim.Adafactor(), optim.Muon(), optim.ScheduleFree()],
                         ids=stacks.named)
def test_decay_by_regex_means_the_same_for_every_optimizer(optimizer):
    optimizer = dataclasses.replace(optimizer, peak=0.1, schedule=optim.Linear(end=0.5), weight_decay=0.5,
                                    decay='norm|query$')
    params, zero = stacks.draw(0), jax.tree.map(np.zeros_like, stacks.draw(0))
    after, _ = stacks.run(stacks.compiled(optimizer), params, [zero])
    for name, p in trees.flatten(params).items():
        factor = 0.95 if 'norm' in name or name.endswith('query') else 1.0
        np.testing.assert_allclose(trees.flatten(after)[name], factor * p, rtol=1e-5)


def test_rates_multiply_the_update_decay_included():
    plain = optim.AdamW(clip=0.0)
    scaled = dataclasses.replace(plain, rates=(('mlp', 0.5), ('up', 0.5), ('norm', 0.0)))
    first, second = (stacks.one(stacks.compiled(o), stacks.draw(0), stacks.draw(1)) for o in (plain, scaled))
    factors = {'blocks/mlp/up': 0.25, 'blocks/mlp/down': 0.5, 'blocks/norm1_scale': 0.0}
    for name, move in trees.flatten(first).items():
        np.testing.assert_allclose(trees.flatten(second)[name], factors.get(name, 1.0) * move, rtol=1e-6)


def test_clip_sees_the_parameters_that_train_only():
    optimizer = optim.SGD(peak=1.0, momentum=0.0, schedule=optim.Constant(), clip=0.5, frozen='tokens')
    grads = stacks.draw(1)
    grads['embed']['tokens'] *= 1e6
    moves = stacks.one(stacks.compiled(optimizer), stacks.draw(0), grads)
    np.testing.assert_allclose(trees.norm(moves), 0.5, rtol=1e-5)


class LoRA(NamedTuple):
    """A weight of the parameter tree that is itself a node: `base` is frozen, an int8 array here."""

    base: Any
    a: Any
    b: Any


@pytest.mark.parametrize('optimizer', ALL, ids=stacks.named)
def test_a_weight_that_is_a_node_trains_like_the_same_arrays_in_a_dict(optimizer):
    optimizer = dataclasses.replace(optimizer, frozen='/base$', rates=(('w/b', 0.5),), decay='w/a', moments='bfloat16')
    draw = np.random.default_rng(0).standard_normal

    def made(a, b, base):
        return {'w': LoRA(base, a, b), 'norm': a[:, 0]}

    def plain(tree):
        return {'w': tree['w']._asdict(), 'norm': tree['norm']}
    params, *gradients = (made(draw((4, 2)).astype(np.float32), draw((2, 3)).astype(np.float32), np.int8([[1, 2]]))
                          for _ in range(4))
    tx = stacks.jitted(optimizer.make(5, {'w': ('embed', 'ff'), 'norm': ('norm',)}))
    after, state = stacks.run(tx, params, gradients)
    expected, _ = stacks.run(tx, plain(params), map(plain, gradients))
    assert isinstance(after['w'], LoRA)
    stacks.close(plain(after), expected, rtol=0)
    stacks.close(plain(optimizer.averaged(state, after))['w']['base'], params['w'].base, rtol=0)
    assert after['w'].base.dtype == np.int8 and np.array_equal(after['w'].base, params['w'].base)
    assert not np.allclose(after['w'].a, params['w'].a) and not np.allclose(after['w'].b, params['w'].b)
    held = [name for name in trees.flatten(state) if 'w/' in name]
    assert {name[-3:] for name in held} == {'w/a', 'w/b'}


def test_an_optimizer_is_added_in_an_experiment_as_the_guide_shows(tmp_path):
    guide = (pathlib.Path(__file__).parents[1] / 'docs/optimizers.md').read_text(encoding='utf-8')
    file = tmp_path / 'signs.py'
    file.write_text(re.search(r'```python\n(.*?)```', guide, re.DOTALL)[1] + '''

@dataclasses.dataclass(frozen=True)
class Run:
    optimizer: optim.Optimizer = optim.AdamW()


def config():
    return Run()
''')
    found = config.load(file, ['optimizer=Signum(peak=0.5)', 'optimizer.momentum=0.8', 'optimizer.clip=0']).config
    assert config.diff(config.build(config.dump(found), file), found) == {}
    grads = [{'w': np.float32([[3, -2, 0]])}, {'w': np.float32([[-1, -2, 0]])}]
    after, _ = stacks.run(found.optimizer.make(9), {'w': np.zeros((1, 3), np.float32)}, grads)
    rates = [found.optimizer.rate(9)(step) for step in range(2)]
    np.testing.assert_allclose(after['w'], [[-sum(rates), sum(rates), 0]], rtol=1e-6)
    with pytest.raises(config.Error, match=r'momentum=1\.5 is not a float in \[0, 1\)'):
        config.override(found, {'optimizer.momentum': 1.5})


def test_axes_of_a_node_go_by_name():
    axes = {'w': {'a': ('layers', 'embed', 'rank')}, 'table': ('vocab', 'embed')}
    params = {'w': LoRA(*(jnp.ones((2, 4, 3)),) * 3), 'table': jnp.ones((5, 4))}
    views = trees.flatten(matrices.of(params, axes, {'table': jnp.ones((5, 2))}))
    assert (views['w/a'].inner, views['w/a'].outer) == ((1,), (2,))
    assert (views['w/b'].names, views['w/b'].inner) == (None, (0, 1))
    assert [views[name].width_ratio(lambda fan_in, fan_out: fan_out) for name in ('table', 'w/a')] == [2, 1]


STEPS = 100
CURVES = [
    (optim.Constant(), lambda p: 1.0),
    (optim.Linear(end=0.2), lambda p: 1 - 0.8 * p),
    (optim.Cosine(end=0.2), lambda p: 0.2 + 0.4 * (1 + np.cos(np.pi * p))),
]


def test_the_rate_of_an_optimizer_is_its_schedules():
    optimizer = optim.AdamW(peak=0.5, schedule=optim.Linear(warmup=3))
    np.testing.assert_allclose(optimizer.rate(10)(5), optim.Linear(warmup=3).make(0.5, 10)(5))


@pytest.mark.parametrize('make, message', [
    (lambda: optim.AdamW(schedule=optim.Cosine(warmup=200)).make(100),
     r'^warmup=200 is more than steps=100; try warmup=10\.$'),
    (lambda: optim.WSD(warmup=90, cooldown=0.2).make(1.0, 100),
     r'^warmup=90 and cooldown=0\.2 overlap in steps=100; try warmup=80\.$'),
    (lambda: optim.WSD(cooldown=20), r'^cooldown=20 is not a float in \[0, 1\]; try cooldown=0\.2\.$'),
    (lambda: optim.WSD(power=0.0), r'^power=0\.0 is not a float above 0; try power=1\.0\.$'),
    (lambda: optim.Linear(end=1.5), r'^end=1\.5 is not a float in \[0, 1\]; try end=0\.0\.$'),
    (lambda: optim.Cosine(warmup=-1), r'^warmup=-1 is not an int in \[0, 2147483647\]; try warmup=0\.$'),
    (lambda: optim.AdamW(peak=-1.0), r'^peak=-1\.0 is not a float of 0 or more; try peak=0\.001\.$'),
    (lambda: optim.AdamW(ema=1.0), r'^ema=1\.0 is not a float in \[0, 1\)'),
    (lambda: optim.Muon(momentum=1.5), r'^momentum=1\.5 is not a float in \[0, 1\)'),
    (lambda: optim.AdamW(decay='('), r"^regex '\(' is not valid"),
    (lambda: optim.AdamW(rates=('embed', 0.1)), r'^rates\.0=embed has 1 items, not 2; try rates\.0=text,0\.1\.$'),
    (lambda: optim.ScheduleFree(ema=0.9), r'^ema=0\.9 is a second average'),
    (lambda: optim.ScheduleFree(b1=0.0), r'^b1=0\.0 leaves ScheduleFree no average'),
    (lambda: optim.AdamW(frozen='.').make(5).init(stacks.draw(0)), r"^frozen='\.' freezes all parameters"),
    (lambda: optim.AdamW(decay='atention').make(5, stacks.AXES).init(stacks.draw(0)),
     r"^regex 'atention' matches none of the 7 parameters; try blocks/attention/"),
    (lambda: optim.AdamW(frozen='embd').make(5, stacks.AXES).init(stacks.draw(0)), r"^regex 'embd' .*try embed/tokens"),
    (lambda: optim.AdamW(rates=(('norm2', 1.0),)).make(5, stacks.AXES).init(stacks.draw(0)),
     r"^regex 'norm2' .*try blocks/norm1_scale"),
])
def test_mistakes_are_one_line_with_a_remedy(make, message):
    with pytest.raises(config.Error, match=message) as caught:
        make()
    assert '\n' not in str(caught.value)
