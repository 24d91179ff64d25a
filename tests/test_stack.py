"""The laws of a Stack itself: patterns, activations read and edited, leaves of other kinds, cross attention, stages."""
import dataclasses

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from layered import LENGTH, ROLLED, THREE, UNROLLED, WIDTH, X, close, context, gradient, one_by_one, parameters, run

from lm import config
from lm.models import Layer, OutputNorm, PostNorm, PreNorm, SandwichNorm, Stack
from lm.nn import MLP, Attention, Context, Execution, LayerNorm, NoPE, Relative, RMSNorm, Rope
from lm.nn.weights import Int8, LoRA
from lm.parallel import sharding
from lm.parallel.pipeline import Pipeline


def test_a_pattern_that_leaves_a_remainder_is_its_layers_one_by_one():
    stack = Stack(THREE, 8)
    params = parameters(stack)
    assert {len(leaf) for leaf in jax.tree.leaves(params['blocks'])} == {8}
    assert [stack.layer(number) for number in (0, 4, 7)] == [THREE[0], THREE[1], THREE[1]]
    expected = one_by_one(stack, params, X)
    close(run(stack, params)[0], expected)
    close(run(stack, params, execution=UNROLLED)[0], expected)
    assert not np.allclose(run(Stack(THREE[::-1], 8), params)[0], expected, atol=1e-2)


@pytest.mark.parametrize('depth', [2, 8], ids=['shorter', 'remainder'])
@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_patterns_under_remat_have_the_same_gradient(remat, depth):
    stack = Stack(tuple(dataclasses.replace(layer, dropout=0.1) for layer in THREE), depth)
    params = parameters(stack)
    close(gradient(stack, params, Execution(remat=remat)), gradient(stack, params, UNROLLED), rtol=1e-3)


def test_a_cached_pattern_decodes_as_it_reads():
    stack = Stack(THREE, 5)
    params, whole = parameters(stack), run(stack, parameters(stack))[0]
    x, outputs = run(stack, params, cache=stack.cache(WIDTH, 2, LENGTH, 'float32'))
    close(x, whole)
    close(outputs.cache[0].shape, (5, 2, LENGTH, 2, 4))
    index = jnp.full((2, 1), LENGTH - 1)
    last, _ = architectures.jit(lambda cache: stack(
        params, X[:, -1:], Context(index, index=index), ROLLED, cache=cache))(
            jax.tree.map(lambda slots: slots.at[:, :, -1].set(0), outputs.cache))
    close(last, whole[:, -1:])


@pytest.mark.parametrize('execution', [ROLLED, UNROLLED, Execution(remat='full')], ids=['scan', 'loop', 'remat'])
def test_captured_activations_are_those_of_every_layer(execution):
    stack = Stack(THREE, 8)
    params = parameters(stack)
    x, outputs = run(stack, params, execution=execution, capture=('attention', 'mlp', 'residual'))
    captured = outputs.captured
    assert {name: array.shape for name, array in captured.items()} == dict.fromkeys(
        ('attention', 'mlp', 'residual'), (8, *X.shape))
    close(captured['residual'][-1], x)
    before = jnp.concatenate([X[None], captured['residual'][:-1]])
    close(before + captured['attention'] + captured['mlp'], captured['residual'])
    close(captured['residual'][3], one_by_one(Stack(THREE, 4), params | {
        'blocks': jax.tree.map(lambda a: a[:4], params['blocks'])}, X))


def test_a_run_patched_after_a_layer_ends_as_the_run_it_was_patched_with():
    stack = Stack(THREE, 8)
    params, other = parameters(stack), X[::-1]
    end, outputs = run(stack, params, other, capture=('residual',))
    mask = (np.arange(8) == 3).reshape(8, 1, 1, 1)
    patched, again = run(stack, params, X, edits={'residual': (mask, outputs.captured['residual'])},
                         capture=('residual',))
    np.testing.assert_array_equal(patched, end)
    close(again.captured['residual'][:3], run(stack, params, X, capture=('residual',))[1].captured['residual'][:3])
    assert not np.allclose(run(stack, params)[0], end, atol=1e-2)


def test_an_edit_of_some_positions_leaves_those_before_them_alone():
    stack = Stack(THREE, 4)
    params, mask = parameters(stack), np.zeros((4, 1, LENGTH, 1), bool)
    mask[1, :, 6] = True
    edited = run(stack, params, edits={'attention': (mask, np.zeros((4, 1, 1, 1), np.float32))})[0]
    whole = run(stack, params)[0]
    np.testing.assert_array_equal(edited[:, :6], whole[:, :6])
    assert np.abs(edited[:, 6] - whole[:, 6]).max() > 1e-3


def test_without_captures_and_edits_the_program_is_the_same():
    stack = Stack(THREE, 8)
    params = parameters(stack)

    def program(**options):
        return str(jax.make_jaxpr(lambda params: stack(params, X, context(), ROLLED, **options)[0])(params))
    plain = program()
    assert program(capture=(), edits=None) == program(edits={}) == plain
    assert program(capture=('residual',)) != plain


def lora(base, rank, seed, b):
    """Returns a LoRA over the leaf 'query' or 'up' [L D ...] with an a drawn from a seed and b of one value."""
    a = np.random.default_rng(seed).standard_normal((*base.shape[:2], rank)).astype(np.float32)
    return LoRA(base, a, np.full((base.shape[0], rank, *base.shape[2:]), b, np.float32),
                np.full(base.shape[0], 0.5, np.float32))


def with_leaves(params, change):
    """Returns parameters with change(leaf, number) in place of two of their matrices."""
    blocks = params['blocks']
    return {'blocks': {**blocks, 'attention': {**blocks['attention'], 'query': change(blocks['attention']['query'], 0)},
                       'mlp': {**blocks['mlp'], 'up': change(blocks['mlp']['up'], 1)}}}


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_adapters_of_zero_are_the_base_and_learn(remat):
    stack, execution = Stack(THREE, 5), Execution(remat=remat)
    params = parameters(stack)
    adapted = with_leaves(params, lambda leaf, number: lora(leaf, 2, number, 0.0))
    close(run(stack, adapted, execution=execution)[0], run(stack, params)[0])

    def loss(params):
        return jnp.sum(jnp.sin(stack(params, X, context(), execution)[0]))
    slopes = architectures.jit(jax.grad(loss))(with_leaves(params, lambda leaf, number: lora(leaf, 2, number, 0.1)))
    for leaf in (slopes['blocks']['attention']['query'], slopes['blocks']['mlp']['up']):
        assert all(np.abs(np.asarray(getattr(leaf, name))).max((1, 2)).min() > 1e-6 for name in ('a', 'b'))


def test_an_adapter_is_the_sum_of_its_matrices():
    def merged(leaf, number):
        own = lora(leaf, 2, number, 0.1)
        return leaf + 0.5 * np.einsum('LDr,Lr...->LD...', own.a, own.b)
    stack = Stack(THREE, 5)
    params = parameters(stack)
    adapted = with_leaves(params, lambda leaf, number: lora(leaf, 2, number, 0.1))
    close(run(stack, adapted)[0], run(stack, with_leaves(params, merged))[0])


def test_eight_bit_leaves_stay_near():
    def quantise(leaf, number):
        scale = np.abs(leaf).max(1, keepdims=True) / 127
        return Int8(np.round(leaf / scale).astype(np.int8), scale[:, 0])
    stack = Stack(THREE, 5)
    params = parameters(stack)
    exact, near = run(stack, params)[0], run(stack, with_leaves(params, quantise))[0]
    distance = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 1e-5 < distance < 0.01


def test_layers_of_one_pattern_share_the_table_of_their_position():
    position = Relative(8, 20)
    stack = Stack((Layer(Attention(4, window=3, position=position)), Layer(Attention(4, position=position))), 4)
    params = parameters(stack)
    assert params.keys() == {'blocks', 'relative'} and params['relative'].shape == (8, 4)
    changed = run(stack, {**params, 'relative': params['relative'] + np.arange(8)[:, None]})[0]
    assert np.abs(changed - run(stack, params)[0]).max() > 1e-3


CROSS = Layer(Attention(4, 2), cross=Attention(4, 2, causal=False, position=NoPE(), bias='all'))
MEMORY = np.random.default_rng(1).standard_normal((2, 7, WIDTH)).astype(np.float32)


def test_cross_attention_is_the_oracles():
    stack = Stack((CROSS,), 1)
    params = parameters(stack)
    x, outputs = run(stack, params, fields={'memory': MEMORY}, capture=('attention', 'cross', 'mlp'))
    captured = {name: np.asarray(array[0], np.float64) for name, array in outputs.captured.items()}
    blocks = jax.tree.map(lambda a: np.asarray(a[0], np.float64), params['blocks'])
    own, middle = blocks['cross'], X + captured['attention']
    query, key, value = (np.tensordot(source, own[name], 1) + own[f'{name}_bias'] for name, source in [
        ('query', oracle.normalise(CROSS.norm, blocks, 'cross_norm', middle)), ('key', MEMORY), ('value', MEMORY)])
    mixed = oracle.attend(query, key, value, np.ones((2, LENGTH, 7), bool))
    close(captured['cross'], np.tensordot(mixed, own['out'], 2) + own['out_bias'])
    close(x, middle + captured['cross'] + captured['mlp'])


def test_an_encoder_and_a_decoder_are_two_stacks():
    encoder = Stack((Layer(Attention(4, causal=False, window=3)), Layer(Attention(4, causal=False))), 3)
    decoder = Stack((CROSS,), 3)
    params = parameters(encoder), parameters(decoder, 1)

    def decode(params, source, segments):
        at = jnp.arange(7)[None]
        memory, _ = encoder(params[0], source, Context(at, segments), ROLLED)
        fields = {'segments': jnp.ones((2, LENGTH), jnp.int32), 'memory': memory, 'memory_segments': segments}
        return decoder(params[1], X, context(**fields), ROLLED)[0]
    decoded = architectures.jit(decode)
    segments = np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32)
    plain, changed = decoded(params, MEMORY, segments), MEMORY.copy()
    changed[:, 5] += 1
    moved = np.abs(decoded(params, changed, segments) - plain).max((1, 2))
    assert moved[0] > 1e-3 and moved[1] == 0
    slopes = architectures.jit(jax.grad(lambda params: jnp.sum(jnp.sin(decode(params, MEMORY, segments)))))(params)
    slopes[1]['blocks']['cross'].pop('key_bias')  # it moves all scores of a query alike
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slopes)) > 1e-6


def test_a_cached_decoder_projects_its_memory_once():
    layer = dataclasses.replace(CROSS, cross=dataclasses.replace(CROSS.cross, qk_norm=RMSNorm()))
    stack, segments = Stack((layer,), 3), np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32)
    params = parameters(stack)
    whole = run(stack, params, fields={'memory': MEMORY, 'memory_segments': segments})[0]
    cache, rows = stack.cache(WIDTH, 2, LENGTH, 'float32'), []

    @architectures.jit
    def advance(cache, x, index, memory):
        at = Context(index, index=index, memory=memory, memory_segments=segments)
        x, outputs = stack(params, x, at, ROLLED, cache=cache)
        return outputs.cache, x
    for at in range(LENGTH):
        cache, x = advance(cache, X[:, at:at + 1], jnp.full((2, 1), at), None if at else MEMORY)
        rows.append(x)
    close(jnp.concatenate(rows, 1), whole)


@pytest.mark.parametrize('residual, ignores_scale, unit', [
    (PreNorm(), True, None), (SandwichNorm(), True, 'attention'), (OutputNorm(), False, 'attention'),
    (PostNorm(), False, 'residual')], ids=lambda value: type(value).__name__)
def test_norms_stand_where_the_residual_says(residual, ignores_scale, unit):
    """Pre-norms hide the size of what a sublayer reads; output norms give what it adds, post-norms the stream, size 1.
    """
    stack = Stack((Layer(Attention(4), norm=RMSNorm(1e-9), residual=residual),), 2)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.ones_like(leaf) if path[-1].key.endswith('scale') else leaf, parameters(stack))
    captured, larger = (run(stack, params, x, capture=('attention', 'residual'))[1].captured for x in (X, 10 * X))
    assert np.allclose(captured['attention'][0], larger['attention'][0], atol=1e-4) == ignores_scale
    for name, array in captured.items():
        assert np.allclose(np.mean(np.square(array), -1), 1, atol=1e-4) == (name == unit)


def test_a_bidirectional_post_norm_stack_sees_the_future_and_a_causal_one_does_not():
    changed = X.copy()
    changed[:, 6] += 1
    for causal in (True, False):
        layer = Layer(Attention(4, causal=causal, position=NoPE(), bias='all'), MLP(bias=True), norm=LayerNorm(1e-12),
                      residual=PostNorm())
        stack = Stack((layer,), 2)
        params = parameters(stack)
        moved = np.abs(run(stack, params)[0] - run(stack, params, changed)[0]).max((0, 2))
        assert np.all(moved[:6] == 0) == causal and np.all(moved[6:] > 1e-4)


def test_of_a_partial_rotary_position_only_the_first_dimensions_turn():
    turned, still = (Stack((Layer(Attention(4, position=position)),), 2) for position in (Rope(fraction=0.5), NoPE()))
    params = parameters(turned)
    query = params['blocks']['attention']['query'].copy()
    query[..., :2] = 0
    blind = {'blocks': {**params['blocks'], 'attention': {**params['blocks']['attention'], 'query': query}}}
    close(run(turned, blind)[0], run(still, blind)[0])
    assert np.abs(run(turned, params)[0] - run(still, params)[0]).max() > 1e-2


@pytest.mark.parametrize('depth, repeats', [(6, 1), (12, 2)])
def test_stages_of_whole_patterns_are_one_device(depth, repeats):
    stack, execution = Stack(THREE, depth), Execution(unroll=1, pipeline=Pipeline(repeats=repeats))
    params = parameters(stack)
    with jax.set_mesh(sharding.make_mesh({'stage': 2}, jax.devices()[:2])):
        staged = run(stack, params, execution=execution)[0]
    close(staged, run(stack, params)[0])


def test_a_stage_that_would_cut_a_pattern_is_refused():
    stack = Stack(THREE, 8)
    with jax.set_mesh(sharding.make_mesh({'stage': 2}, jax.devices()[:2])), pytest.raises(
            config.Error, match='^8 layers over mesh.stage=2 cut a pattern of 3; try as many layers') as caught:
        run(stack, parameters(stack))
    assert '\n' not in str(caught.value)
