"""Masked diffusion: the bound of the likelihood, and texts by unmasking."""
import itertools

import architectures
import jax
import numpy as np
from architectures import BIDIRECTIONAL, parameters
from test_objectives import text

from lm import generate, train

BERT = BIDIRECTIONAL['bert']


def test_the_diffusion_bound_is_the_chain_rule_averaged_over_all_orders():
    """Of three tokens: minus the log-likelihoods of all six orders in which they may be unmasked, averaged."""
    params = parameters(BERT)
    params['tokens'] = 20 * params['tokens']  # so that what a token costs depends on which others are seen
    row, sets = text(1, 3)['targets'][0], np.array(list(itertools.product([False, True], repeat=3)))
    logits = np.asarray(BERT.logits(params, np.where(sets, 49, row)), np.float64)
    logits -= logits.max(-1, keepdims=True)
    nll = np.log(np.exp(logits).sum(-1)) - logits[:, np.arange(3), row]
    costs = {tuple(hidden): nll[number] for number, hidden in enumerate(sets)}
    orders = [sum(costs[tuple(place in order[step:] for place in range(3))][order[step]] for step in range(3))
              for order in itertools.permutations(range(3))]
    batch = {name: np.repeat(row[None], 20_000, 0) for name in ('inputs', 'targets')}
    total, metrics = architectures.jit(lambda batch: train.MaskedDiffusion().loss(BERT, params, batch))(batch)
    np.testing.assert_allclose(total, np.mean(orders) / 3, rtol=0.04)
    assert metrics['weight'] == 60_000 and np.std(orders) > 0.1 * np.mean(orders)


def test_unmasking_draws_every_token_from_the_model():
    params = parameters(BERT)
    tokens = np.asarray(generate.unmask(BERT, params, (3, 12), jax.random.key(1), mask=49))
    assert tokens.shape == (3, 12) and (tokens < 49).all() and len({*map(tuple, tokens)}) == 3
    cold = np.asarray(generate.unmask(BERT, params, (2, 12), jax.random.key(1), mask=49, steps=1, temperature=1e-6))
    best = np.asarray(BERT.logits(params, np.full((2, 12), 49)))[..., :49].argmax(-1)
    np.testing.assert_array_equal(cold, best)
