"""Masked (absorbing) diffusion language models (Sahoo et al. 2024, arXiv:2406.07524; Shi et al. 2024)."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm import config, evaluate, generate
from lm.parallel import reductions
from lm.train.objectives.masked import Hidden
from lm.train.objectives.objective import row_keys

GOLDEN = 0.6180339887498949  # multiples of it fill [0, 1) evenly, however many rows there are


@dataclass(frozen=True)
class MaskedDiffusion(Hidden):
    """An upper bound of the negative log-likelihood: the cross entropy of hidden tokens over the share of them, t.

    Each row has a t of its own in [least, 1): every token is hidden with that probability, and its loss counts 1/t.
    length: of the text shown at the end, 0 for none, of that many unmasking steps.
    """

    least: config.Fraction = 1e-3
    length: config.Count = 64

    def prepare(self, model, batch, key):
        tokens, counts, batch = self.text(batch)
        rows = reductions.row_numbers(len(tokens))
        share = self.least + (1 - self.least) * ((jax.random.uniform(key) + GOLDEN * rows) % 1)[:, None]
        draw = jax.vmap(lambda key: jax.random.uniform(key, tokens.shape[1:]))
        hidden = draw(row_keys(key, len(tokens))) < share
        return {**batch, 'inputs': jnp.where(hidden, self.reserved(model)[0], tokens),
                'weights': hidden / share * counts, 'counts': counts}

    def scores(self, sums, stream):
        """Returns what evaluate.scores does; bits per byte, a bound here, have a name that says so."""
        names = {'bits_per_byte': 'bits_per_byte_bound'}
        return {names.get(name, name): value for name, value in evaluate.scores(sums, stream).items()}

    def show(self, model, params, encoder, prefix):
        if not self.length:
            return ''
        (tokens,) = generate.unmask(model, params, (1, self.length), jax.random.key(0), mask=self.reserved(model)[0])
        return encoder.decode(tokens)
