"""Sentence-order prediction (ALBERT, Lan et al. 2019, arXiv:1909.11942)."""
from dataclasses import dataclass

import jax.numpy as jnp

from lm.train.objectives.sentence_pairs import SentencePair


@dataclass(frozen=True)
class SentenceOrder(SentencePair):
    """Masked language modelling, and whether the two spans of a row stand in order (label 0) or not (label 1)."""

    def relate(self, label, own, other, cut):
        return jnp.where(label, jnp.roll(own, -cut, 0), own), jnp.where(label, len(own) - cut, cut)
