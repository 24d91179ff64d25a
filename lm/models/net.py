"""The Linen side of a causal language model: embedding, the stack of blocks, final norm and output."""
from dataclasses import dataclass
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models import blocks
from lm.nn import layers
from lm.parallel import pipeline, reductions, sharding


@dataclass(frozen=True)
class Pass:
    """What one forward pass is given beside tokens: of rows [B T], a dropout key, and keys and values to extend."""

    segments: Any = None
    positions: Any = None
    index: Any = None
    key: Any = None
    cache: Any = None
    zigzag: Any = None


class Net(nn.Module):
    """Tokens [B T] -> hidden states [B T D], the extended cache, and what was measured in each layer; see Block."""

    model: Any
    tapped: bool = False

    @nn.compact
    def __call__(self, tokens, given):
        model = self.model
        at = jnp.arange(tokens.shape[1])[None] if given.positions is None else given.positions
        x = layers.embed(self.table(), tokens)
        if model.scaled_embedding:
            x = x * jnp.asarray(model.origin.width ** 0.5, x.dtype)
        x = model.position.add(self, x, at)
        keys = (None,) * 2 if given.key is None else jax.random.split(given.key)
        rows = reductions.first_row(len(x)) + jnp.arange(len(x))
        x = layers.dropout(x, model.dropout, keys[0], rows, given.zigzag)
        windows = sorted(set(model.windows))
        kinds = jnp.array([windows.index(model.windows[i % len(model.windows)]) for i in range(model.depth)])
        shared = {'rows': rows, 'segments': given.segments, 'index': given.index, 'zigzag': given.zigzag,
                  'table': model.position.table(self, model.heads),
                  'angles': [model.position.angles(at, model.size, window) for window in windows]}
        layer = {'kind': kinds, 'cache': given.cache,
                 'key': None if given.key is None else jax.random.split(keys[1], model.depth)}
        start = {'embedding': x} if self.tapped else {}
        x, (cache, measured) = self.layered(x, layer, shared)
        if not model.tied:
            self.output()
        x = layers.norm(self, 'final_norm', x, model.norm, model.norm_epsilon)
        return x * (model.origin.width / model.width), cache, {**start, **measured}

    def layered(self, x, layer, shared):
        """Returns (x, (cache, what was measured)) after all layers, over the stages of the mesh if it has any."""
        model = self.model
        stack = partial(layers.stack, blocks.Block, remat=model.remat, unroll=model.unroll, model=model,
                        tapped=self.tapped)
        if pipeline.stages() == 1 or layer['cache'] is not None or self.is_initializing():
            return stack(model.depth, name='blocks')(x, layer, shared)
        rows = {name: shared[name] for name in ('rows', 'segments', 'angles')
                if any(len(each) == len(x) for each in jax.tree.leaves(shared[name]))}

        def apply(mine, x, rows):
            params, layer = mine
            run = stack(len(layer['kind']), parent=None)
            return run.apply({'params': params}, x, layer, {**shared, **rows})
        params = self.get_variable('params', 'blocks')
        x, out = pipeline.run(apply, model.pipeline, (params, layer), x, rows)
        return sharding.constrain(x, 'rows', 'length', None), out

    @nn.compact
    def table(self):
        axes = {'vocab': self.model.padded, 'embed': self.model.width}
        return layers.weight(self, 'tokens', axes, layers.normal(0.02), self.model.dtype)

    @nn.compact
    def output(self):
        axes = {'embed': self.model.width, 'vocab': self.model.padded}
        return layers.weight(self, 'output', axes, layers.normal(0.02), self.model.dtype)

    @nn.compact
    def unembed(self, x):
        if self.model.tied:
            logits = layers.einsum('BTD,VD->BTV', x, reductions.scatter_gradient(self.table(), 'vocab', 'embed'))
        else:
            logits = layers.einsum('BTD,DV->BTV', x, reductions.scatter_gradient(self.output(), 'embed', 'vocab'))
        cap = self.model.logit_softcap
        return cap * jnp.tanh(logits / cap) if cap else logits
