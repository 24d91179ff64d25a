"""A TextVae and its bound: the formula, the truth by integration, what z does, cached decoding, annealing."""
from dataclasses import replace
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import parameters

from lm import cli, config, records, train
from lm.models import Added, AsMemory, AsPrefix, Half, Layer, TextVae
from lm.nn import Attention, Experts, NoPE
from lm.parallel import sharding


def small(condition, latent=3):
    across = Attention(4, causal=False, position=NoPE()) if isinstance(condition, AsMemory) else None
    encoder, decoder = Layer(Attention(4, causal=False)), Layer(Attention(4), cross=across)
    return TextVae(50, latent, 16, Half(1, encoder), Half(2, decoder), condition)


MODELS = {'added': small(Added()), 'memory': small(AsMemory(2)), 'prefix': small(AsPrefix(2))}
models = pytest.mark.parametrize('name', MODELS)


def text(rows=4, length=9):
    tokens = np.random.default_rng(0).integers(0, 49, (rows, length + 1)).astype(np.int32)
    return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}


@models
def test_the_bound_is_that_of_the_formula(name):
    model, batch = MODELS[name], text()
    params, weights = parameters(model), np.ones((4, 9), np.float32)
    weights[3] = 0
    weights[2, 6:] = 0
    total, metrics = architectures.jit(partial(train.Elbo(beta=0.5).loss, model))(params, {**batch, 'weights': weights})
    mean, log_variance = (np.asarray(x, np.float64) for x in model.posterior(params, batch['targets'], weights))
    noise, _ = jax.random.split(jax.random.key(0))
    draws = np.stack([jax.random.normal(jax.random.fold_in(noise, row), (3,)) for row in range(4)])
    logits = np.asarray(model.logits(params, batch['inputs'], mean + np.exp(log_variance / 2) * draws), np.float64)
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, batch['targets'][..., None], -1)[..., 0]
    kl = 0.5 * (mean ** 2 + np.exp(log_variance) - 1 - log_variance).sum(-1)[:3]
    np.testing.assert_allclose(total, ((nll * weights).sum() + 0.5 * kl.sum()) / 24, rtol=1e-4)
    np.testing.assert_allclose(metrics['loss'], ((nll * weights).sum() + kl.sum()) / 24, rtol=1e-4)
    np.testing.assert_allclose(metrics['kl'], kl.mean(), rtol=1e-4)
    assert metrics['weight'] == 24


def test_many_importance_weights_reach_the_truth():
    """With one latent number, the likelihood of a text is an integral that a grid gives."""
    model = small(Added(), latent=1)
    params, batch = parameters(model), {**text(3), 'weights': np.ones((3, 9), np.float32)}
    grid = np.linspace(-6, 6, 801)
    nll = architectures.jit(jax.vmap(lambda z: jnp.sum(model.losses(params, batch, jnp.full((3, 1), z)), 1)))(grid)
    truth = -np.asarray(jax.nn.logsumexp(-nll - grid[:, None] ** 2 / 2, 0)) - np.log(12 / 800) + np.log(2 * np.pi) / 2

    def columns(draws):
        measure = architectures.jit(partial(train.Elbo(draws=draws)._columns, model))
        return np.asarray(measure(params, batch, jax.random.key(0)))
    bound = columns(4000)[4]
    assert (bound > truth - 0.1).all()
    np.testing.assert_allclose(bound.mean(), truth.mean(), atol=0.1)
    first = columns(1)
    assert first.shape == (8, 3) and (first[3] == 1).all() and (first[5] <= np.log(3) + 1e-4).all()


@models
def test_a_text_depends_on_its_latent_and_on_no_later_token(name):
    model, tokens = MODELS[name], text()['inputs']
    params, z = parameters(model), np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    logits = architectures.jit(partial(model.logits, params))
    plain, other = np.asarray(logits(tokens, z)), z.copy()
    other[1] += 1
    moved = np.abs(np.asarray(logits(tokens, other)) - plain).max(-1)
    assert (moved[1] > 1e-4).all() and moved[[0, 2, 3]].max() == 0
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 49
    moved = np.abs(np.asarray(logits(changed, z)) - plain).max(-1)
    assert moved[:, :5].max() == 0 and (moved[:, 5:] > 1e-5).all()


@models
def test_cached_decoding_is_the_whole_pass(name):
    model, tokens = MODELS[name], text()['inputs']
    z = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    params, lengths = parameters(model), np.array([4, 2, 4, 3], np.int32)
    whole = np.asarray(model.logits(params, tokens, z))
    logits, cache = model.prefill({**params, 'z': z}, tokens[:, :4], lengths, 12)
    step = architectures.jit(model.decode)
    for at in range(4):
        np.testing.assert_allclose(logits, whole[np.arange(4), lengths + at - 1], atol=2e-4)
        logits, cache = step(params, tokens[np.arange(4), lengths + at], cache)


def test_it_is_split_over_a_mesh_by_the_names_of_its_axes():
    mesh, model, batch = sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}), MODELS['memory'], text()
    params = parameters(model)
    places = sharding.mirror(jax.eval_shape(model.init, jax.random.key(0)), model.axes(), mesh)

    def slope(params, batch):
        objective = train.Elbo(word_dropout=0.3, free=0.1)
        return jax.value_and_grad(lambda p: objective.loss(model, p, batch, jax.random.key(2))[0])(params)
    with jax.set_mesh(mesh):
        split = architectures.jit(slope)(jax.device_put(params, places), sharding.put(batch, mesh))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), split, architectures.jit(slope)(
        params, batch))


@pytest.mark.parametrize('objective, steps, betas', [
    (train.Elbo(beta=0.8), (0, 50, 500), (0.8, 0.8, 0.8)),
    (train.Elbo(beta=0.8, anneal=100), (0, 50, 100, 500), (0.0, 0.4, 0.8, 0.8)),
    (train.Elbo(anneal=100, cycles=2), (0, 10, 25, 40, 50, 60, 99, 100), (0.0, 0.4, 1.0, 1.0, 0.0, 0.4, 1.0, 1.0))])
def test_beta_rises_as_asked(objective, steps, betas):
    np.testing.assert_allclose([float(objective.at(jnp.int32(step)).beta) for step in steps], betas, rtol=1e-6)


def test_free_nats_cost_nothing_and_hidden_words_are_hidden():
    model, batch = MODELS['added'], text()
    params = parameters(model)
    mean, log_variance = model.posterior(params, batch['targets'])
    by_number = np.asarray((mean ** 2 + np.exp(log_variance) - 1 - log_variance) / 2)
    free = float(np.median(by_number))
    plain, spared = (train.Elbo(free=amount).loss(model, params, batch)[0] for amount in (0.0, free))
    np.testing.assert_allclose(spared - plain, np.maximum(free - by_number, 0).sum() / 36, rtol=1e-3)
    hidden = train.Elbo(word_dropout=0.4)._hide(model, jax.random.key(1), np.zeros((200, 9), np.int32))
    np.testing.assert_allclose(np.mean(np.asarray(hidden) == 49), 0.4, atol=0.04)


SPARSE = Layer(Attention(4, causal=False), Experts(4, 2, 8))


@pytest.mark.parametrize('make, words', [
    (lambda: train.Elbo().check(architectures.DECODERS['gpt2']), 'try model=TextVae'),
    (lambda: replace(MODELS['added'], condition=AsMemory()), 'no cross attention; try decoder.layer.cross=Attention'),
    (lambda: replace(MODELS['added'], encoder=Half(1, SPARSE)), 'TextVae trains no experts'),
    (lambda: replace(MODELS['memory'], condition=Added()), 'have cross attention'),
    (lambda: train.Elbo().loss(MODELS['added'], {}, {**text(), 'segments': 0}), 'try data.packing=windows')])
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(config.Error, match=words):
        make()


def test_it_trains_anneals_scores_and_writes(tmp_path, capsys):
    file = tmp_path / 'vae.py'
    file.write_text('''
from dataclasses import replace
from experiments import tiny
from lm import data, optim, train
from lm.models import Half, Layer, TextVae
from lm.nn import Attention

def config():
    return replace(tiny.config(), model=TextVae(258, 4, 32, Half(1, Layer(Attention(2, causal=False))),
                                                Half(1, Layer(Attention(2)))),
                   objective=train.Elbo(anneal=20, draws=2), steps=30, optimizer=optim.AdamW(peak=3e-3))
''')
    assert cli.main(['train', str(file), f'--workdir={tmp_path}/run', f'--cache={tmp_path}/cache', 'data.batch=8',
                     'data.context=32', 'cadence.log=1', 'data.train=Pick(Synthetic(count=40), 0.0, 0.9)',
                     'data.valid=Pick(Synthetic(count=40), 0.9, 1.0)']) == 0
    read = [record for record in records.read(tmp_path / 'run') if 'loss' in record]
    assert read[-1]['loss'] < 0.8 * read[0]['loss']
    np.testing.assert_allclose([read[at]['beta'] for at in (0, 10, 29)], [0.0, 0.5, 1.0])
    out = capsys.readouterr().out
    for word in ('kl', 'active_units', 'importance_weighted_perplexity', 'bits_per_byte_bound', 'prior: ', 'to the '):
        assert word in out
