"""Pipeline parallelism: runs of layers on the mesh axis 'stage', and micro-batches passed from one to the next."""
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from lm import config
from lm.config import legacy
from lm.parallel import sharding


@dataclass(frozen=True)
class Pipeline:
    """A circular schedule (Narayanan et al. 2021, arXiv:2104.04473): `microbatches` pass through all stages `repeats`
    times.

    Each time a stage applies another run of layers. The bubble is (stages - 1) / (microbatches * repeats + stages - 1)
    of the time. With repeats above 1 the layers of a stage are not neighbours, and are moved to it at each step.
    microbatches: 0 for as many as there are stages.
    """

    microbatches: config.Count = 0
    repeats: config.Size = 1

    MOVED: ClassVar[dict[str, str]] = legacy.PIPELINE

    def __post_init__(self):
        config.check(self)

    def over(self, stages, depth, rows):
        """Returns the number of micro-batches; raises config.Error where `depth` layers or `rows` do not divide."""
        batches, runs = self.microbatches or stages, stages * self.repeats
        if depth % runs:
            near = max(1, round(depth / runs)) * runs
            raise config.Error(f'depth={depth} does not divide into {stages} stages x {self.repeats} repeats; '
                               f'try model.depth={near}.')
        if batches < stages:
            raise config.Error(f'pipeline.microbatches={batches} leaves some of {stages} stages idle; '
                               f'try model.execution.pipeline.microbatches={stages}.')
        if rows % batches:
            near = max(1, round(rows / batches)) * batches
            raise config.Error(f'{rows} rows do not divide into pipeline.microbatches={batches}; try {near} rows.')
        return batches


def stages():
    """Returns the size of the mesh axis 'stage', 1 where there is none."""
    return dict(jax.sharding.get_abstract_mesh().shape).get('stage', 1)


def run(apply, pipeline, layers, x, rows):
    """Returns (x [B T D], out [L ...]) of all layers applied to all rows, stage by stage.

    `layers` is a tree of arrays [L ...], `rows` one of arrays [B ...] that go with x. `apply(layers [C ...],
    x [B/M T D], rows) -> (x, out)` applies C layers in a row to a micro-batch; the parts of `out` [C ...] are averaged
    over micro-batches.
    """
    count, depth = stages(), len(jax.tree.leaves(layers)[0])
    batches, repeats = pipeline.over(count, depth, len(x)), pipeline.repeats
    layers = jax.tree.map(lambda a: _by_stage(a, count, repeats), layers)
    waiting, rows = jax.tree.map(lambda a: _split(a, batches), (x, rows))
    stage = jnp.arange(count)

    def work(layers, x, index, repeat):
        mine = jax.tree.map(lambda a: a[0] if repeats == 1 else a[repeat], layers)
        return apply(mine, x, jax.tree.map(lambda a: a[index], rows))
    everyone = jax.vmap(work, spmd_axis_name='stage')

    def turn(carry, now):
        moving, waiting, total = carry
        place = now - stage
        index, repeat = place % batches, jnp.clip(place // batches, 0, repeats - 1)
        busy = (place >= 0) & (place < batches * repeats)
        moving = jnp.concatenate([waiting[index[0]][None], moving[:-1]])
        moving = sharding.constrain(moving, 'layers', 'batch', 'stream', None)
        moving, out = everyone(layers, moving, index, repeat)
        done = jnp.where(busy[-1], moving[-1], waiting[index[-1]])
        waiting = jax.lax.dynamic_update_index_in_dim(waiting, done, index[-1], 0)
        total = jax.tree.map(lambda t, o: t.at[stage, repeat].add(
            jnp.where(busy.reshape(-1, *[1] * (o.ndim - 1)), o, 0) / batches), total, out)
        return (moving, waiting, total), None

    empty = jnp.zeros((count, *waiting.shape[1:]), x.dtype)
    none = jax.tree.map(lambda o: jnp.zeros((count, repeats, *o.shape[1:]), o.dtype),
                        jax.eval_shape(everyone, layers, empty, stage, stage)[1])
    (_, waiting, total), _ = jax.lax.scan(turn, (empty, waiting, none), jnp.arange(batches * repeats + count - 1))
    return _joined(waiting), jax.tree.map(lambda t: jnp.moveaxis(t, 1, 0).reshape(depth, *t.shape[3:]), total)


def _by_stage(a, count, repeats):
    """Returns layers [L ...] as [stages repeats C ...]: repeat r of stage s has run r * stages + s of C layers."""
    parts = jnp.moveaxis(a.reshape(repeats, count, -1, *a.shape[1:]), 1, 0)
    return sharding.constrain(parts, 'layers', *(None,) * (parts.ndim - 1)) if repeats > 1 else parts


def _split(a, batches):
    """Returns rows [B ...] as micro-batches [M B/M ...]; number i has rows i, i + M, ..., spread as all rows are."""
    return jnp.moveaxis(a.reshape(-1, batches, *a.shape[1:]), 1, 0)


def _joined(a):
    """Returns the rows [B ...] that `_split` made micro-batches of."""
    return jnp.moveaxis(a, 0, 1).reshape(-1, *a.shape[2:])
