"""Next-sentence prediction (Devlin et al. 2018, arXiv:1810.04805)."""
from dataclasses import dataclass

import jax.numpy as jnp

from lm.train.objectives.sentence_pairs import SentencePair


@dataclass(frozen=True)
class NextSentence(SentencePair):
    """Masked language modelling, and whether span B follows span A (label 0) or is of another row (label 1)."""

    def relate(self, label, own, other, cut):
        later = jnp.arange(len(own)) >= cut
        return jnp.where((later & label)[:, None], other, own), cut
