"""Masked language modelling (Devlin et al. 2018, arXiv:1810.04805)."""
from dataclasses import KW_ONLY, dataclass
from functools import partial

import jax
import jax.numpy as jnp

from lm import config
from lm.train.objectives.objective import TokenObjective, row_keys


@dataclass(frozen=True)
class Hidden(TokenObjective):
    """Base of the objectives that hide tokens of a text from a model that sees both sides.

    mask: id of the token that stands for them, counted from the end of the vocabulary where negative.
    """

    _: KW_ONLY
    mask: int = -1

    def check(self, model):
        if model.causal:
            raise config.Error('a causal model does not see the tokens behind a hidden one; '
                               'try model.layer.attention.causal=false, or objective=NextToken.')

    def reserved(self, model):
        return (self.mask % model.vocab,)

    def text(self, batch):
        """Returns (the tokens of a batch [B T], their weights, the batch): without segments, tokens without weight are
        padding that no other sees.
        """
        weights = batch.get('weights')
        if weights is not None and 'segments' not in batch:
            batch = {**batch, 'segments': (weights > 0).astype(jnp.int32)}
        return batch['targets'], jnp.ones(batch['targets'].shape) if weights is None else weights, batch


@dataclass(frozen=True)
class MaskedLM(Hidden):
    """Cross entropy of a share `rate` of the tokens: hidden behind the mask token, replaced at random, or left as is.

    Which ones is drawn anew at every step. replaced, kept: shares of the chosen tokens that become another token and
    that stay. whole_words: all tokens of a word are chosen or none, in batches that say where words begin.
    """

    rate: config.Fraction = 0.15
    replaced: config.Fraction = 0.1
    kept: config.Fraction = 0.1
    whole_words: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.replaced + self.kept > 1:
            raise config.Error(f'replaced={self.replaced} and kept={self.kept} are more than all chosen tokens; '
                               'try replaced=0.1, kept=0.1.')

    def prepare(self, model, batch, key):
        """Returns the batch with its targets as inputs, some changed; those that were chosen have weights.

        Tokens without weight are not chosen.
        """
        if self.whole_words and 'begins' not in batch:
            raise config.Error('whole_words=true and batches do not say where words begin; try data.words=true.')
        tokens, weights, batch = self.text(batch)
        begins = batch['begins'] if self.whole_words else jnp.ones(tokens.shape, bool)
        change = jax.vmap(partial(self._change, model))
        inputs, chosen = change(row_keys(key, len(tokens)), tokens, begins, weights > 0)
        return {**batch, 'inputs': inputs, 'weights': chosen * weights}

    def _change(self, model, key, tokens, begins, present):
        """Returns (a row of tokens [T] with some changed, which of them were chosen)."""
        choice, kind, other = jax.random.uniform(key, (3, *tokens.shape))
        word, (mask, *_) = jnp.maximum(jnp.cumsum(begins) - 1, 0), self.reserved(model)
        chosen = (choice[word] < self.rate) & present
        changed = jnp.where(kind < self.replaced, (other * model.vocab).astype(tokens.dtype), mask)
        changed = jnp.where(kind >= 1 - self.kept, tokens, changed)
        return jnp.where(chosen, changed, tokens), chosen
