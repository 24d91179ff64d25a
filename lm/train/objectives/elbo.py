"""The evidence lower bound of a variational autoencoder (Kingma and Welling 2013, arXiv:1312.6114)."""
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, evaluate, generate
from lm.config.overrides import with_traced_fields
from lm.train.objectives.objective import Objective, row_keys

ACTIVE = 0.01  # variance over texts of a latent number's posterior mean above which it is active (Burda et al. 2015)


@dataclass(frozen=True)
class Elbo(Objective):
    """Minus the evidence lower bound: the text's cross entropy given a z of q(z | text), plus beta KL(q || p).

    anneal: steps over which beta rises linearly from 0 (Bowman et al. 2015), 0 for none; cycles: how often it does, in
    as many parts of `anneal` steps, half rising and half at the top (Fu et al. 2019, arXiv:1903.10145). free: nats of
    each latent number that cost nothing in each text; Kingma et al. 2016 have those of the mean over a batch.
    word_dropout: share of the decoder's inputs hidden behind the token `mask`, counted from the end of the vocabulary
    where negative. draws: of z for the importance-weighted likelihood (Burda et al. 2015, arXiv:1509.00519) of a
    validation.
    """

    beta: config.NonNegative = 1.0
    anneal: config.Count = 0
    cycles: config.Size = 1
    free: config.NonNegative = 0.0
    word_dropout: config.FractionBelowOne = 0.0
    mask: int = -1
    draws: config.Size = 8

    def check(self, model):
        if not hasattr(model, 'posterior'):
            raise config.Error(f'{type(model).__name__} has no latent vector; try model=TextVae.')

    def reserved(self, model):
        return (self.mask % model.vocab,) if self.word_dropout else ()

    def at(self, step):
        if not self.anneal:
            return self
        whole = self.anneal / self.cycles
        part = (step % whole) / whole * (1 if self.cycles == 1 else 2)
        share = jnp.where(step >= self.anneal, 1.0, jnp.minimum(part, 1.0))
        return with_traced_fields(self, {'beta': self.beta * share})

    def loss(self, model, params, batch, key=None):
        noise, words = jax.random.split(jax.random.key(0) if key is None else jax.random.fold_in(key, 1))
        weights = _weights(batch)
        mean, log_variance = model.posterior(params, batch['targets'], weights, key)
        z = _draw(noise, mean, log_variance)
        inputs = batch['inputs'] if key is None else self._hide(model, words, batch['inputs'])
        drop = None if key is None else jax.random.fold_in(key, 2)
        nll = jnp.sum(model.losses(params, {**batch, 'inputs': inputs}, z, drop) * weights)
        by_number, present = _divergence(mean, log_variance), jnp.any(weights > 0, 1)
        weight = jnp.sum(weights)
        kl, free = (jnp.sum(cost * present[:, None]) for cost in (by_number, jnp.maximum(by_number, self.free)))
        total, loss = ((nll + cost) / jnp.maximum(weight, 1e-9) for cost in (self.beta * free, kl))
        return total, {'loss': loss, 'weight': weight, 'kl': kl / jnp.maximum(jnp.sum(present), 1),
                       'beta': jnp.float32(self.beta)}

    def _hide(self, model, key, inputs):
        """Returns inputs [B T] of which word_dropout are the mask token."""
        if not self.word_dropout:
            return inputs
        draw = jax.vmap(lambda key: jax.random.uniform(key, inputs.shape[1:]))
        return jnp.where(draw(row_keys(key, len(inputs))) < self.word_dropout, self.reserved(model)[0], inputs)

    def sums(self, model, sources, params, batch, key):
        """Returns [sources 6 + 2 Z]: sums over texts, see `_columns`."""
        return evaluate.by_source(self._columns(model, params, batch, key), batch['source'], sources)

    def _columns(self, model, params, batch, key):
        """Returns numbers of each text, [B] each: cross entropy, tokens, KL, 1, importance-weighted negative
        log-likelihood, log q(z | text) less that of the mean over the batch's texts; its posterior's means and their
        squares.
        """
        weights, tokens = _weights(batch), batch['targets']
        present = jnp.any(weights > 0, 1).astype(jnp.float32)
        mean, log_variance = model.posterior(params, tokens, weights)

        def draw(key):
            z = _draw(key, mean, log_variance)
            nll = jnp.sum(model.losses(params, batch, z) * weights, 1)
            others = _log_normal(z[:, None], mean, log_variance) + jnp.log(present)
            mixture = jax.nn.logsumexp(others, 1) - jnp.log(jnp.maximum(jnp.sum(present), 1))
            own = _log_normal(z, mean, log_variance)
            return nll, _log_normal(z, 0.0, jnp.zeros_like(z)) - own - nll, own - mixture
        nll, log_weight, information = jax.lax.map(draw, jax.random.split(key, self.draws))
        bound = math.log(self.draws) - jax.nn.logsumexp(log_weight, 0)
        kl = jnp.sum(_divergence(mean, log_variance), 1)
        columns = [nll.mean(0), jnp.sum(weights, 1), kl, present, bound, information.mean(0), *mean.T,
                   *jnp.square(mean).T]
        return [column * present for column in columns]

    def scores(self, sums, stream):
        """Returns 'loss', minus the bound in nats a token; 'kl' and 'mutual_information' in nats a text, of which the
        latter is at most the log of the rows of a batch; 'active_units'; and 'importance_weighted_perplexity'.

        The bound by importance weights, over `draws` draws, gives 'bits_per_byte_bound' too.
        """
        nll, tokens, kl, rows, _, information, *moments = sums.sum(0)
        means, squares = np.array(moments).reshape(2, -1) / max(rows, 1)
        weighted = evaluate.scores(sums[:, [4, 1]], stream)  # its bound, over tokens
        scores = {'loss': (nll + kl) / max(tokens, 1), 'reconstruction': nll / max(tokens, 1), 'kl': kl / max(rows, 1),
                  'mutual_information': information / max(rows, 1),
                  'active_units': int(np.sum(squares - np.square(means) > ACTIVE)),
                  'importance_weighted_perplexity': weighted['perplexity']}
        names = {'bits_per_byte': 'bits_per_byte_bound'}
        return {**{name: value if isinstance(value, int) else float(value) for name, value in scores.items()},
                **{names[name]: weighted[name] for name in names if name in weighted}}

    def show(self, model, params, encoder, prefix):
        """Returns three texts of p(z), and five on the way from the first z to the second."""
        z = jax.random.normal(jax.random.key(0), (3, model.latent))
        way = jnp.linspace(0, 1, 5)[:, None]
        rows = jnp.concatenate([z, (1 - way) * z[0] + way * z[1]])
        prompt = generate.opening(prefix)
        *_, samples = generate.generate(model, {**params, 'z': rows}, encoder, [prompt] * len(rows), prefix=prefix,
                                        length=40, sampler=generate.Sampler(temperature=0.5))
        names = ['prior'] * 3 + ['from the first to the second'] * 5
        return '\n'.join(f'{name}: {" ".join(sample.text.split())}'
                         for name, sample in zip(names, samples, strict=True))


def _weights(batch):
    if 'segments' in batch:
        raise config.Error('a latent vector is that of a whole row; try data.packing=windows.')
    return batch.get('weights', jnp.ones(batch['targets'].shape))


def _draw(key, mean, log_variance):
    """Returns z [B Z] of each row's Gaussian, by the numbers of rows."""
    noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(row_keys(key, len(mean)))
    return mean + jnp.exp(log_variance / 2) * noise


def _divergence(mean, log_variance):
    """Returns KL(N(mean, variance) || N(0, 1)) in nats of each latent number [B Z]."""
    return (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance) / 2


def _log_normal(z, mean, log_variance):
    """Returns the log-density [...] of z [... Z] under a diagonal Gaussian."""
    square = jnp.square(z - mean) * jnp.exp(-log_variance)
    return -jnp.sum(square + log_variance + math.log(2 * math.pi), -1) / 2
