"""A small tree of parameters with stacked layers, and ways to take steps on it."""
import functools

import jax
import numpy as np
import optax

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


def named(optimizer):
    return type(optimizer).__name__


def draw(seed):
    """Returns a tree of float32 numpy arrays of the shapes above."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda shape: rng.standard_normal(shape).astype(np.float32), SHAPES,
                        is_leaf=lambda node: isinstance(node, tuple))


jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def jitted(tx):
    return optax.GradientTransformation(jit(tx.init), jit(tx.update))


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
