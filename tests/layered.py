"""A Stack run by itself: its parameters, outputs and gradients, three unlike layers, and inputs."""
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np

from lm.models import Layer, Stack
from lm.nn import MLP, Attention, Context, Execution, NoPE, Rope, Silu
from lm.nn.weights import unbox

WIDTH, LENGTH = 16, 10
# Three layers that differ in window, position and softcap.
THREE = tuple(Layer(Attention(4, 2, window=window, position=position, softcap=softcap), MLP(24, Silu(), gated=True))
              for window, position, softcap in [(3, Rope(10.0), 0.0), (5, NoPE(), 2.0), (0, Rope(), 0.0)])
ROLLED, UNROLLED = Execution(unroll=1), Execution(unroll=99)
X = np.random.default_rng(0).standard_normal((2, LENGTH, WIDTH)).astype(np.float32)


def parameters(stack, seed=0, width=WIDTH):
    """Returns parameters of a Stack drawn wide enough that every one of them matters."""
    rng = np.random.default_rng(seed)
    shapes = unbox(jax.eval_shape(partial(stack.declare, width=width), jax.random.key(0)))[0]
    return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


def context(**fields):
    return Context(jnp.arange(LENGTH)[None], rows=jnp.arange(2), **fields)


def run(stack, params, x=X, execution=ROLLED, fields=None, **options):
    """Returns (x, Outputs); fields: of the Context."""
    def apply(params, x, fields, edits):
        return stack(params, x, context(**fields), execution, edits=edits, **options)
    edits = options.pop('edits', None)
    return architectures.jit(apply)(params, x, fields or {}, edits)


def gradient(stack, params, execution):
    key = jax.random.key(3)
    return architectures.jit(jax.value_and_grad(
        lambda params: jnp.sum(jnp.sin(stack(params, X, context(key=key), execution)[0]))))(params)


def one_by_one(stack, params, x, **fields):
    """Returns x after the layers of a stack, each run as a Stack of its own."""
    for number in range(stack.depth):
        own = {**params, 'blocks': jax.tree.map(lambda a, number=number: a[number:number + 1], params['blocks'])}
        x, _ = run(Stack((stack.layer(number),), 1), own, x, fields=fields)
    return x


def close(a, b, **tolerance):
    jax.tree.map(partial(np.testing.assert_allclose, **{'rtol': 1e-4, 'atol': 1e-5, **tolerance}), a, b)
