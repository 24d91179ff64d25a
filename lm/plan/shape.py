"""A model's sizes as the formulas use them; no other file of lm.plan reads or replaces a field of a model."""
import dataclasses

import jax.numpy as jnp

from lm import config
from lm.nn import layers

# Rematerialisation of a model -> the share of a layer's forward pass that its backward pass computes again.
RECOMPUTED = {'none': 0, 'dots': 0.2, 'full': 1, 'offload': 1}
FIELDS = {'remat': 'remat', 'vocab_chunks': 'loss_parts'}  # of a Layout -> the dotted field of a model


@dataclasses.dataclass(frozen=True)
class ExpertShape:
    """Sizes of a mixture of experts; capacity_factor 0 drops no token."""

    count: int
    top_k: int
    ff: int
    shared: int
    capacity_factor: float


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. ff: of its dense MLP. vocab: rows of the output layer, padding included. windows: one a
    layer, 0 for full attention. remat, vocab_chunks: as the experiment has them.
    """

    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    ff: int
    gated: bool
    experts: ExpertShape | None
    vocab: int
    tied: bool
    windows: tuple
    dtype: str
    remat: str
    vocab_chunks: int

    @property
    def itemsize(self):
        """Bytes of a value in matrix products."""
        return jnp.dtype(self.dtype).itemsize

    @property
    def up_projections(self):
        """Matrices from D to F: up, and in a gated MLP the gate."""
        return 2 if self.gated else 1

    def mlp_chunks(self, shards):
        """Returns how many chunks of F the MLP is computed in under full rematerialisation, for F cut in `shards`."""
        return layers.parts(self.ff, self.width, shards)


def shape_of(model):
    """Returns the Shape of a model; raises config.Error where it lacks a field that the formulas need."""
    try:
        experts = model.experts and ExpertShape(model.experts.count, model.experts.top, model.experts.ff,
                                                model.experts.shared, model.experts.room)
        return Shape(width=model.width, depth=model.depth, heads=model.heads, kv_heads=model.groups,
                     head_dim=model.size, ff=model.ff or 4 * model.width, gated=model.activation in layers.GATED,
                     experts=experts, vocab=model.padded, tied=model.tied,
                     windows=tuple(model.windows[i % len(model.windows)] for i in range(model.depth)),
                     dtype=model.dtype, remat=model.remat, vocab_chunks=model.loss_parts)
    except AttributeError as error:
        raise config.Error(f'{type(model).__name__} has no {error.name}, which lm.plan counts with; '
                           'read it from the model in lm/plan/shape.py.') from error


def with_execution(model, remat, vocab_chunks):
    """Returns the model with this rematerialisation and so many chunks of the vocabulary in its loss."""
    return dataclasses.replace(model, **{FIELDS['remat']: remat, FIELDS['vocab_chunks']: vocab_chunks})
