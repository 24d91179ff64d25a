"""The base of objectives that tell two spans of text apart, beside masked language modelling."""
import abc
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from lm import config, evaluate
from lm.models.model import Auxiliary
from lm.nn import losses
from lm.parallel import reductions
from lm.train.objectives.masked import MaskedLM
from lm.train.objectives.objective import row_keys

CONTROLS = 3  # in a row: first A separator B separator


@dataclass(frozen=True)
class SentencePair(MaskedLM):
    """MaskedLM over rows of two spans A and B, of types 0 and 1, and the cross entropy of a label of each row.

    A row of text is cut at random, in its middle half, and so is its label drawn. The label's loss is a mean over
    hidden tokens too: it counts by how many its row has, so that micro-batches add up. first, separator: ids of the
    token that begins a row and of the one behind each span, as `mask` is. weight: of the label's loss.
    """

    first: int = -2
    separator: int = -3
    weight: config.NonNegative = 1.0

    def check(self, model):
        super().check(model)
        if getattr(model, 'classes', 0) < 2:
            raise config.Error(f'{type(self).__name__} sorts texts into 2 classes; try an Encoder with model.classes=2,'
                               ' model.pooling=First.')

    def reserved(self, model):
        return tuple(token % model.vocab for token in (self.mask, self.first, self.separator))

    @abc.abstractmethod
    def relate(self, label, own, other, cut):
        """Returns (a row of text [T ...], where its span A ends) by its label, 0 or 1.

        own: the row [T ...], of which `cut` entries make A. other: that of half a batch away.
        """

    def prepare(self, model, batch, key):
        """Returns the batch of pairs with tokens hidden, and the 'label' of each row [B]."""
        if 'segments' in batch:
            raise config.Error(f'{type(self).__name__} cuts rows that are one text each; try data.packing=windows.')
        targets, pairing = batch['targets'], jax.random.fold_in(key, 1)
        present, begins = ((batch.get(name, jnp.ones_like(targets)) > 0).astype(targets.dtype)
                           for name in ('weights', 'begins'))
        text = jnp.stack([targets, present, begins], -1)[:, :-CONTROLS]
        everything, numbers = reductions.gather_rows(text), reductions.global_row_offset(len(text))
        if len(everything) < 2:
            raise config.Error(f'{type(self).__name__} takes text of other rows and there is one; try data.batch=2.')
        other = everything[(numbers + jnp.arange(len(text)) + len(everything) // 2) % len(everything)]
        rows, types, label = jax.vmap(partial(self._pair, model))(row_keys(pairing, len(text)), text, other)
        targets, present, begins = (rows[..., column] for column in range(3))
        pairs = {**batch, 'targets': targets, 'types': types, 'label': label, 'begins': begins > 0}
        if 'weights' in batch:
            pairs['segments'] = (present != 0).astype(jnp.int32)
        return super().prepare(model, {**pairs, 'weights': (present == 1).astype(jnp.float32)}, key)

    def _pair(self, model, key, own, other):
        """Returns (a row [T 3] of tokens, of whether they are of a text (-1: a control), and begin a word; its types
        [T]; its label).
        """
        size, keys = len(own), jax.random.split(key)
        cut, label = jax.random.randint(keys[0], (), size // 4, size - size // 4), jax.random.bernoulli(keys[1])
        _, first, separator = self.reserved(model)
        text, cut = self.relate(label, own, other, cut)
        slot = jnp.arange(size + CONTROLS)
        row = jnp.where((slot <= cut)[:, None], text[slot - 1], text[slot - 2])
        ends = (slot == cut + 1) | (slot == size + CONTROLS - 1)
        control = jnp.stack([jnp.where(ends, separator, first), jnp.full_like(slot, -1), jnp.ones_like(slot)], -1)
        row = jnp.where((ends | (slot == 0))[:, None], control, row)
        return row, (slot > cut + 1).astype(jnp.int32), label.astype(jnp.int32)

    def token_losses(self, model, params, batch, key=None):
        nll, log_z, auxiliary, loss, correct = self._scored(model, params, batch, key)
        hidden = jnp.sum(batch['weights'], -1)
        label_loss = losses.masked_mean(loss, hidden, reductions.pmean_data(jnp.sum(hidden)))
        metrics = {**auxiliary.metrics, 'label_loss': label_loss, 'label_accuracy': jnp.mean(correct)}
        return nll + self.weight * loss[:, None], log_z, Auxiliary(auxiliary.loss, metrics)

    def _scored(self, model, params, batch, key=None):
        """Returns (nll, log_z, Auxiliary) of tokens, and of labels their loss and whether the best is right, [B]."""
        states = model.states(params, batch, key)
        logits = model.class_logits(params, states)
        loss, _ = losses.cross_entropy(logits, batch['label'], model.classes)
        correct = jnp.argmax(logits, -1) == batch['label']
        return *model.target_losses(params, states, self.smoothing), states.auxiliary, loss, correct

    def sums(self, model, sources, params, batch, key):
        """Returns [sources 5]: of hidden tokens losses, weights, and losses of their rows' labels; of rows right labels
        and counts.
        """
        batch = self.prepare(model, batch, key)
        nll, _, _, loss, correct = self._scored(model, params, batch)
        weights = jnp.sum(batch['weights'], -1)
        return evaluate.by_source([jnp.sum(nll * batch['weights'], -1), weights, loss * weights,
                                   correct * (weights > 0), weights > 0], batch['source'], sources)

    def scores(self, sums, stream):
        _, hidden, label_loss, correct, rows = sums.sum(0)
        scores = super().scores(sums[:, :2], stream)
        return scores | {'loss': scores['loss'] + self.weight * float(label_loss / max(hidden, 1)),
                         'label_accuracy': float(correct / max(rows, 1))}
