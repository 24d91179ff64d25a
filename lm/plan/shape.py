"""A model's sizes as the formulas use them; no other file of lm.plan reads or replaces a field of a model."""
import dataclasses

import jax.numpy as jnp

from lm import config
from lm.nn import memory
from lm.nn.experts import Experts
from lm.nn.latent_attention import LatentAttention
from lm.parallel.pipeline import Pipeline

# Rematerialisation of a model -> the share of a layer's forward pass that its backward pass computes again.
RECOMPUTED = {'none': 0, 'dots': 0.2, 'full': 1, 'offload': 1}


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
    """Sizes of a decoder. ff: of its dense MLP. vocab: rows of the output layer, padding included. attentions: one a
    layer. remat, vocab_chunks, pipeline: as the experiment has them. period: layers of the pattern that is repeated.
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
    attentions: tuple
    dtype: str
    remat: str
    vocab_chunks: int
    pipeline: Pipeline
    period: int

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
        return memory.mlp_chunks(self.ff, self.width, shards)

    def attended(self, context):
        """Returns the share of all pairs of `context` positions that attention reads, mean over layers."""
        return sum(attention.seen(context) for attention in self.attentions) / len(self.attentions) / context


def shape_of(model):
    """Returns the Shape of a model; raises config.Error where it lacks a field that the formulas need.

    Layers have weights of the same shapes, and keys and values of their own: the first one's sizes are those of all.
    """
    try:
        layers = [model.stack.layer(number) for number in range(model.depth)]
        if model.ahead:
            raise config.Error(f'lm plan counts by a stack of layers, and {type(model).__name__} has {model.ahead} '
                               f'modules behind one; plan a Decoder with model.depth={model.depth + model.ahead}.')
        if len(model.stack.stacks(model.width)) > 1 or isinstance(layers[0].attention, LatentAttention):
            raise config.Error('lm plan counts layers of one shape, with keys and values of their own, and these are '
                               'others; plan a Decoder of like layers and its size.')
        attention, mlp, execution = layers[0].attention, layers[0].mlp, model.execution
        experts = ExpertShape(mlp.count, mlp.top_k, mlp.ff, mlp.shared, mlp.capacity_factor) if isinstance(
            mlp, Experts) else None
        return Shape(width=model.width, depth=model.depth, heads=attention.heads, kv_heads=attention.num_kv_heads,
                     head_dim=attention.head_size(model.width), ff=mlp.ff if experts else mlp.hidden(model.width),
                     gated=mlp.gated, experts=experts, vocab=model.padded_vocab, tied=model.head.tied,
                     attentions=tuple(layer.attention for layer in layers), dtype=execution.dtype,
                     remat=execution.remat, vocab_chunks=execution.vocab_chunks, pipeline=execution.pipeline,
                     period=len(model.stack.pattern))
    except AttributeError as error:
        raise config.Error(f'lm plan counts by a stack of layers, and {type(error.obj).__name__} has no {error.name}; '
                           'give it the fields of a Decoder, or plan a Decoder of its size.') from error


def with_execution(model, **fields):
    """Returns the model with these fields of its Execution."""
    return dataclasses.replace(model, execution=dataclasses.replace(model.execution, **fields))
