"""The laws of a Stack whose layers have unlike weights: arrays for each shape, run in the order of the layers."""
import dataclasses

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layered import LENGTH, ROLLED, UNROLLED, WIDTH, X, close, gradient, parameters, run

from lm import config
from lm.models import Layer, OutputNorm, Stack
from lm.nn import MLP, Attention, Context, Execution, Experts, LayerNorm
from lm.parallel import sharding


@pytest.mark.parametrize('other', [
    Layer(Attention(4, 2)), Layer(Attention(4), MLP(24)), Layer(Attention(4), norm=LayerNorm()),
    Layer(Attention(4, bias='qkv')), Layer(Attention(4), residual=OutputNorm()),
    Layer(Attention(4), Experts(4, 2, 64))], ids=['kv_heads', 'ff', 'norm', 'bias', 'residual', 'experts'])
def test_layers_of_unlike_weights_have_stacks_of_their_own(other):
    first = Layer(Attention(4))
    assert Stack((first, other), 5).stacks(WIDTH) == {'blocks': [0, 2, 4], 'blocks_1': [1, 3]}
    assert Stack((first, dataclasses.replace(first, dropout=0.5)), 5).stacks(WIDTH) == {'blocks': [0, 1, 2, 3, 4]}
    assert Stack((first, other), 1).stacks(WIDTH) == {'blocks': [0]}
    params = parameters(Stack((first, other), 5))
    assert [{len(leaf) for leaf in jax.tree.leaves(params[name])} for name in ('blocks', 'blocks_1')] == [{3}, {2}]
    alone = parameters(Stack((first,), 3))
    assert jax.tree.map(np.shape, params['blocks']) == jax.tree.map(np.shape, alone['blocks'])


# Two layers and then a period of two: of the one shape with experts and other keys, of the other not.
DENSE, MIXED = Layer(Attention(4)), Layer(Attention(4, 2, window=3), Experts(4, 2, 12, shared=1))
UNLIKE = Stack((DENSE, dataclasses.replace(DENSE, attention=Attention(4, window=2)), *(DENSE, MIXED) * 2, DENSE), 7)


@pytest.mark.parametrize('execution', [ROLLED, UNROLLED, Execution(remat='full')], ids=['scan', 'loop', 'remat'])
def test_a_pattern_of_unlike_weights_is_its_layers_one_by_one(execution):
    params, x = parameters(UNLIKE), X
    assert UNLIKE.stacks(WIDTH) == {'blocks': [0, 1, 2, 4, 6], 'blocks_1': [3, 5]}
    assert UNLIKE._repetition() == (2, 2)
    whole, outputs = run(UNLIKE, params, execution=execution, capture=('residual',))
    for number in range(7):
        name, numbers = next(item for item in UNLIKE.stacks(WIDTH).items() if number in item[1])
        row = numbers.index(number)
        own = {'blocks': jax.tree.map(lambda a, row=row: a[row:row + 1], params[name])}
        x, alone = run(Stack((UNLIKE.layer(number),), 1), own, x)
        close(outputs.captured['residual'][number], x)
        for measured, value in alone.auxiliary.items():
            close(outputs.auxiliary[measured][row], value[0])
    close(whole, x)
    assert outputs.auxiliary['load'].shape == (2, 4)


def test_a_pattern_of_unlike_weights_has_one_gradient_however_it_runs():
    params = parameters(UNLIKE)
    close(gradient(UNLIKE, params, Execution(remat='full')), gradient(UNLIKE, params, UNROLLED), rtol=1e-3)


def test_a_cached_pattern_of_unlike_weights_decodes_as_it_reads():
    params, whole = parameters(UNLIKE), run(UNLIKE, parameters(UNLIKE))[0]
    x, outputs = run(UNLIKE, params, cache=UNLIKE.cache(WIDTH, 2, LENGTH, 'float32'))
    close(x, whole)
    assert [outputs.cache[name][0].shape for name in ('blocks', 'blocks_1')] == [
        (5, 2, LENGTH, 4, 4), (2, 2, LENGTH, 2, 4)]
    index = jnp.full((2, 1), LENGTH - 1)
    last, _ = architectures.jit(lambda cache: UNLIKE(
        params, X[:, -1:], Context(index, index=index), ROLLED, cache=cache))(
            jax.tree.map(lambda slots: slots.at[:, :, -1].set(0), outputs.cache))
    close(last, whole[:, -1:])


def test_layers_of_unlike_weights_do_not_go_over_stages():
    with jax.set_mesh(sharding.make_mesh({'stage': 2}, jax.devices()[:2])), pytest.raises(
            config.Error, match=r'^layers of unlike weights do not go over stages; try a mesh without stage\.'):
        run(Stack((DENSE, MIXED), 4), parameters(Stack((DENSE, MIXED), 4)))
