"""Modern Hopfield networks: attention as retrieval from stored patterns (Ramsauer et al. 2020, arXiv:2008.02217)."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm import config
from lm.nn import attention
from lm.nn.layers import Attention


@dataclass(frozen=True)
class Hopfield(Attention):
    """Attention whose queries are replaced `updates` - 1 times by what they retrieve of the keys, before the values
    are: a query is a state, keys are stored patterns, `scale` is beta. One update is Attention.
    """

    updates: config.Size = 2

    def flops(self, width, length):
        again = 4 * self.seen(length) * self.heads * self.head_size(width)
        return super().flops(width, length) + (self.updates - 1) * again

    def mix(self, query, key, value, spec):
        for _ in range(self.updates - 1):
            query = super().mix(query, key, key, spec)
        return super().mix(query, key, value, spec)


def retrieve(states, patterns, beta):
    """Returns states [T D] after one update, X^T softmax(beta X state) of stored patterns X [S D]: attention."""
    spec = attention.AttentionSpec(causal=False, window=0, softcap=0.0, scale=beta)
    query, key = states[None, :, None], patterns[None, :, None]
    return attention.attend(query, key, key, spec)[0, :, 0]


def energy(states, patterns, beta):
    """Returns the energy [T] of states [T D], which no update raises: it is 0 or more (the paper's equation 2)."""
    scores = jnp.einsum('TD,SD->TS', states, patterns)
    largest = jnp.max(jnp.sum(jnp.square(patterns), axis=-1))
    return (jnp.sum(jnp.square(states), axis=-1) + largest) / 2 - (
        jax.nn.logsumexp(beta * scores, axis=-1) - jnp.log(len(patterns))) / beta
