"""Latent attention, and experts in groups behind dense layers: against float64 numpy, cached, packed, over a mesh."""
import dataclasses
import math
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from architectures import parameters, small

from lm import config
from lm.models import Head, Layer
from lm.nn import MLP, Execution, Experts, LatentAttention, NoNorm, Rope, Silu, Yarn
from lm.nn.attention import blocked, dispatch
from lm.parallel import sharding

LENGTH = 12
YARN = Yarn(20.0, 8.0, 12, 4.0, 0.5, growth=1.1)
ATTENTION = LatentAttention(4, head_dim=10, rotary=4, value_dim=6, rank=8, query_rank=6, position=YARN, scale=0.4)
PLAIN = LatentAttention(4, head_dim=6, rotary=2, rank=4, position=Rope(10.0), window=4, bias='all', sink=True,
                        qk_norm=NoNorm())
EXPERTS = Experts(6, 2, 12, shared=1, router='sigmoid', groups=3, top_groups=2, scale=2.5, bias_rate=0.1)
DENSE = MLP(20, Silu(), gated=True)
# As DeepSeek-V3, dense layers first; and as Llama 4, every other layer with experts, all groups in the choice.
MODELS = {
    'behind': small(depth=4, pattern=(*[Layer(ATTENTION, DENSE)] * 2, *[Layer(ATTENTION, EXPERTS)] * 2),
                    head=Head(tied=False)),
    'between': small(depth=5, pattern=(Layer(PLAIN, DENSE), Layer(PLAIN, dataclasses.replace(
        EXPERTS, groups=2, top_groups=1, normalised=False, shared=0)))),
}
every = pytest.mark.parametrize('model', MODELS.values(), ids=MODELS)


class Oracle(oracle.Decoder):
    """oracle.Decoder of layers in two stacks, with the formulas of DeepSeek-V2, 9 to 19, and of V3, 12 to 16."""

    def attend(self, attention, params, x, at, segments):
        def read(name, x):
            return np.tensordot(x, params[name], 1) + (params[f'{name}_bias'] if attention.bias != 'none' else 0)

        def made(name, latent):
            return np.tensordot(oracle.normalise(attention.qk_norm, params, f'{name}_norm', latent), params[name], 1)
        still = attention.head_dim - attention.rotary
        query = made('query', read('query_latent', x)) if attention.query_rank else read('query', x)
        both, turning = made('key_value', read('latent', x)), read('key', x)[:, :, None]
        query = np.concatenate([query[..., :still], oracle.turn(attention.position, query[..., still:], at)], -1)
        turned = oracle.turn(attention.position, turning, at)
        key = np.concatenate([both[..., :still], np.repeat(turned, attention.heads, 2)], -1)
        visible = np.broadcast_to(oracle.sees(x.shape[1], attention.window, segments), (len(x), *[x.shape[1]] * 2))
        mixed = self.mixed((query, key, both[..., still:]), visible, attention, params)
        y = np.tensordot(mixed, params['out'], 2)
        return y + params['out_bias'] if attention.bias == 'all' else y

    def mixed(self, arrays, visible, attention, params):
        query, key, value = arrays
        out = np.zeros((*query.shape[:3], value.shape[-1]))
        scale = attention.scale or 1 / math.sqrt(attention.head_dim)
        for b, n in np.ndindex(len(query), attention.heads):
            terms = np.exp(np.where(visible[b], scale * query[b, :, n] @ key[b, :, n].T, -np.inf))
            total = terms.sum(-1, keepdims=True) + (math.exp(params['sink'][n]) if attention.sink else 0)
            out[b, :, n] = terms / total @ value[b, :, n]
        return out

    def mix(self, experts, params, x):
        """Returns what experts give, token by token."""
        own, out = params['experts'], np.zeros(x.shape)
        for b, t in np.ndindex(*x.shape[:2]):
            scores = 1 / (1 + np.exp(-(x[b, t] @ own['router'])))
            biased = scores + own['router_bias']
            groups = biased.reshape(experts.groups, -1)
            best = np.argsort(-np.sort(groups, -1)[:, -2:].sum(-1))[:experts.top_groups]
            allowed = [e for e in range(experts.count) if e // groups.shape[1] in best]
            chosen = sorted(allowed, key=lambda e: -biased[e])[:experts.top_k]
            total = sum(scores[e] for e in chosen) if experts.normalised else 1
            for e in chosen:
                hidden = oracle.gate(experts.activation, x[b, t] @ own['gate'][e], x[b, t] @ own['up'][e])
                out[b, t] += experts.scale * scores[e] / total * hidden @ own['down'][e]
        return out + super().feed(DENSE, params['mlp'], x) if experts.shared else out

    def block(self, layer, params, x, at, segments):
        def norm(name, x):
            return oracle.normalise(layer.norm, params, name, x)
        x = x + self.attend(layer.attention, params['attention'], norm('attention_norm', x), at, segments)
        y = norm('mlp_norm', x)
        return x + (self.mix(layer.mlp, params, y) if isinstance(layer.mlp, Experts) else
                    self.feed(layer.mlp, params['mlp'], y))

    def states(self, tokens, segments=None, positions=None, types=None):
        at = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
        x, used = self.embed(tokens, at, types), {'blocks': 0, 'blocks_1': 0}
        for number in range(self.model.depth):
            layer = self.pattern[number % len(self.pattern)]
            name = 'blocks_1' if isinstance(layer.mlp, Experts) else 'blocks'
            x = self.block(layer, oracle._at(self.params[name], used[name]), x, at, segments)
            used[name] += 1
        return oracle.normalise(layer.norm, self.params, 'final_norm', x)


def logits(model, params, batch):
    return model.logits(params, batch['inputs'], batch['segments'], batch['positions'])


forward = architectures.jit(logits, static_argnums=0)


@partial(architectures.jit, static_argnums=0)
def slope(model, params, batch):
    return jax.value_and_grad(lambda params: jnp.sum(jnp.sin(logits(model, params, batch))))(params)


def packed(seed=0):
    """Returns rows of two documents, and two slots of padding at the end of the first row."""
    tokens = np.random.default_rng(seed).integers(0, 50, (2, LENGTH)).astype(np.int32)
    segments = np.array([[1] * 5 + [2] * 5 + [0] * 2, [1] * 8 + [2] * 4], np.int32)
    return {'inputs': tokens, 'segments': segments,
            'positions': np.array([[*range(5), *range(5), 0, 0], [*range(8), *range(4)]], np.int32)}


@every
def test_logits_are_the_oracles(model):
    params, batch = parameters(model), packed()
    expected = Oracle(model, oracle.double(params)).logits(*batch.values())
    assert expected.std() > 0.1
    np.testing.assert_allclose(forward(model, params, batch), expected, atol=1e-4)


def test_the_gradient_is_the_oracles():
    """Compares every parameter's gradient along a random direction with central differences in float64."""
    model, batch = MODELS['behind'], packed()
    params = parameters(model)
    exact, rng, step = oracle.double(params), np.random.default_rng(3), 1e-6
    for path, leaf in jax.tree_util.tree_leaves_with_path(slope(model, params, batch)[1]):
        holder = exact
        for entry in path[:-1]:
            holder = holder[entry.key]
        value, last = holder[path[-1].key], path[-1].key
        direction, sums = rng.standard_normal(value.shape), []
        for sign in (1, -1):
            holder[last] = value + sign * step * direction
            sums.append(np.sin(Oracle(model, exact).logits(*batch.values())).sum())
        holder[last] = value
        expected = (sums[0] - sums[1]) / (2 * step)
        assert abs(np.vdot(leaf, direction) - expected) < 3e-4 * float(jnp.linalg.norm(leaf)) + 1e-4, path


@every
def test_cached_decode_is_the_full_forward(model):
    params, batch = parameters(model), packed()
    tokens, lengths = batch['inputs'], np.array([8, 5])
    whole = architectures.jit(model.logits)(params, tokens)

    @architectures.jit
    def continued(params, tokens):
        first, cache = model.prefill(params, tokens[:, :8], lengths, LENGTH)

        def advance(cache, _):
            token = jnp.take_along_axis(tokens, cache['length'][:, None], 1)[:, 0]
            logits, cache = model.decode(params, token, cache)
            return cache, logits
        cache, rest = jax.lax.scan(advance, cache, None, length=4)
        return jnp.concatenate([first[:, None], jnp.moveaxis(rest, 0, 1)], 1), cache
    logits, cache = continued(params, tokens)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(logits[row], whole[row, length - 1:length + 4], atol=1e-4)
    attention = model.layers[0].attention
    assert {leaf.shape[2:] for leaf in jax.tree.leaves(cache['entries'])} == {
        (LENGTH, attention.rank), (LENGTH, attention.rotary)}


def test_future_tokens_do_not_matter_and_full_remat_changes_nothing():
    model, batch = MODELS['behind'], packed()
    params, changed = parameters(model), dict(batch, inputs=batch['inputs'].copy())
    changed['inputs'][1, 3] = (changed['inputs'][1, 3] + 1) % 50
    moved = np.abs(forward(model, params, changed) - forward(model, params, batch)).max(-1)
    assert moved[1, 3:8].min() > 1e-4 and moved[0].max() == moved[1, :3].max() == moved[1, 8:].max() == 0
    again = dataclasses.replace(model, execution=Execution(remat='full', unroll=1))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), slope(again, params, batch),
                 slope(model, params, batch))


@pytest.mark.parametrize('sizes', [{'data': 2, 'tensor': 2, 'expert': 2}, {'fsdp': 4, 'tensor': 2}], ids=str)
def test_a_mesh_is_one_device(sizes):
    model = MODELS['behind']
    params, batch = parameters(model), jax.tree.map(lambda x: np.tile(x, (4, 1)), packed())
    mesh = sharding.make_mesh(sizes)
    places = sharding.mirror(params, model.axes(), mesh)
    assert places['blocks_1']['attention']['key_value'].shard_shape((2, 8, 4, 12))[2] == 2
    expected = slope(model, params, batch)
    with jax.set_mesh(mesh):
        found = slope(model, jax.device_put(params, places), sharding.put(batch, mesh))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1, float(jnp.abs(b).max())))


def test_kernels_of_one_size_get_values_padded_to_it(monkeypatch):
    rng = np.random.default_rng(0)
    query, key, value = (rng.standard_normal((2, LENGTH, 4, size)).astype(np.float32) for size in (10, 10, 6))
    spec, sizes = dispatch.ring.masking.AttentionSpec(), []

    def attend(query, key, value, spec):
        sizes.append(value.shape[-1])
        return blocked.attend(query, key, value, spec)
    expected = dispatch.attend(query, key, value, spec)
    monkeypatch.setitem(dispatch.KERNELS, 'cudnn', (lambda *case: None, attend))
    monkeypatch.setitem(dispatch.FAST, sharding.platform(), 'cudnn')
    np.testing.assert_allclose(dispatch.attend(query, key, value, spec), expected, atol=1e-6)
    assert sizes == [10] and expected.shape == (2, LENGTH, 4, 6)


@pytest.mark.parametrize('attention', [ATTENTION, PLAIN], ids=['queries too', 'plain'])
def test_flops_are_those_of_its_matrices_and_scores(attention):
    model = small(layer=Layer(attention, DENSE), depth=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))['blocks']['attention']
    matrices = sum(math.prod(leaf.shape) for name, leaf in shapes.items()
                   if not name.endswith(('scale', 'bias', 'sink')))
    values = attention.value_dim or attention.head_dim
    scores = 2 * attention.seen(64) * attention.heads * (attention.head_dim + values)
    assert attention.flops(16, 64) == 2 * matrices + scores


@pytest.mark.parametrize('build, words', [
    (lambda: LatentAttention(4, 2), 'heads share latents, not keys, .*; try kv_heads=0'),
    (lambda: LatentAttention(4, qk_norm_over='heads'), "try kv_heads=0 qk_norm_over='head'"),
    (lambda: LatentAttention(4, rotary=3), 'rotary=3 is odd .*; try rotary=4'),
    (lambda: small(layer=Layer(LatentAttention(4, head_dim=8, rotary=8))), 'head_dim=8 hold rotary=8 .*try head_dim='),
    (lambda: small(layer=Layer(LatentAttention(4, head_dim=8, rotary=4, value_dim=9))), 'value_dim=9 of no more'),
    (lambda: Experts(6, 2, 8, groups=4), 'groups=4 and top_groups=1 do not cut count=6 experts; try groups=3'),
    (lambda: Experts(6, 2, 8, groups=3, top_groups=4), 'top_groups=4 do not cut'),
    (lambda: Experts(6, 3, 8, groups=3), 'top_k=3 is more than the experts in top_groups=1 groups; try top_groups=2'),
    (lambda: small(width=24, pattern=(Layer(mlp=Experts(6, 2, 8)), Layer(mlp=Experts(4, 2, 8)))),
     'count is 4 and 6 in layers of one pattern; give all the same'),
])
def test_bad_fields_are_one_clear_line(build, words):
    with pytest.raises(config.Error, match=words) as caught:
        build()
    assert '\n' not in str(caught.value)


def test_the_bias_of_experts_moves_in_the_stack_that_has_them():
    model = MODELS['between']
    params = parameters(model)
    loads = jnp.array([[0.5, 0.5, 0, 0, 0, 0], [0, 0, 0, 0, 0.25, 0.75]])
    moved, metrics = model.post_update(params, {'load': loads, 'balance': 1.0})
    before, after = (tree['blocks_1']['experts']['router_bias'] for tree in (params, moved))
    np.testing.assert_allclose((after - before) / 0.1, np.sign(1 / 6 - loads), atol=1e-5)
    assert metrics == {'load': 4.5, 'balance': 1.0} and jax.tree.all(
        jax.tree.map(np.array_equal, moved['blocks'], params['blocks']))
