"""Mixtures of objectives."""
from dataclasses import replace

import architectures
import jax
import jax.numpy as jnp
import numpy as np
from architectures import BIDIRECTIONAL, parameters
from test_objectives import PROMPTED, text

from lm import train

CLASSES = replace(BIDIRECTIONAL['bert'], classes=2)


def test_a_mixture_is_one_of_its_objectives_at_every_step():
    ul2 = train.Mixture((train.SpanCorruption(0.15, sentinels=10), train.SpanCorruption(0.5, 2.0, sentinels=10),
                         train.PrefixLM()), (1.0, 1.0, 2.0))
    params, batch = parameters(PROMPTED), text(4)
    mixed = architectures.jit(lambda key: ul2.loss(PROMPTED, params, batch, key)[0])
    single = [architectures.jit(lambda key, one=one: one.loss(PROMPTED, params, batch, key)[0])
              for one in ul2.objectives]
    drawn = []
    for seed in range(40):
        key = jax.random.key(seed)
        loss, losses = float(mixed(key)), np.array([float(one(key)) for one in single])
        assert np.isclose(losses, loss, rtol=1e-5).sum() == 1
        drawn.append(int(np.argmin(np.abs(losses - loss))))
    assert set(drawn) == {0, 1, 2} and 12 <= drawn.count(2) <= 28
    assert list(ul2.reserved(PROMPTED)) == list(range(40, 50))


def test_a_mixture_changes_as_its_objectives_do():
    mixed = train.Mixture((train.Elbo(anneal=10), train.Elbo())).at(jnp.int32(5))
    assert [float(one.beta) for one in mixed.objectives] == [0.5, 1.0]


def test_objectives_of_unlike_metrics_and_sums_mix_and_count_by_their_weights():
    mixture = train.Mixture((train.MaskedLM(), train.NextSentence()), (3.0, 1.0))
    params, batch = parameters(CLASSES), {**text(8), 'weights': jnp.ones((8, 20)), 'source': jnp.zeros(8, jnp.int32)}
    _, metrics = architectures.jit(lambda key: mixture.loss(CLASSES, params, batch, key))(jax.random.key(1))
    assert set(metrics) == {'loss', 'weight'}

    class Stream:
        lost, sources = 'it is no text', ('text',)
    sums = jax.device_get(mixture.sums(CLASSES, 1, params, batch, jax.random.key(2)))
    scores = mixture.scores(tuple(np.asarray(part, np.float64) for part in sums), Stream)
    alone = scores['loss/0-MaskedLM'], scores['loss/1-NextSentence']
    np.testing.assert_allclose(scores['loss'], (3 * alone[0] + alone[1]) / 4, rtol=1e-9)
    assert alone[1] > alone[0]
