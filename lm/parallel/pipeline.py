"""Pipelining: runs of layers on the mesh axis 'stage', and micro-batches on their way from one to the next."""
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from lm import config
from lm.parallel import sharding


@dataclass(frozen=True)
class Pipeline:
    """A circular schedule: `batches` micro-batches go through all stages `circuits` times (Narayanan et al. 2021,
    arXiv:2104.04473).

    Each time a stage applies another run of layers. It idles for (stages - 1) of batches * circuits + stages - 1 turns,
    so that more of either waste less. With more than one circuit the layers of a stage are not neighbours, and move to
    it at each step. batches: 0 for as many as there are stages.
    """

    batches: int = 0
    circuits: int = 1

    def __post_init__(self):
        if self.batches < 0 or self.circuits < 1:
            raise config.Error(f'pipeline={self} has a negative size or no circuit; try Pipeline().')

    def over(self, stages, depth, rows):
        """Returns the number of micro-batches; raises config.Error where `depth` layers or `rows` do not divide."""
        batches, runs = self.batches or stages, stages * self.circuits
        if depth % runs:
            near = max(1, round(depth / runs)) * runs
            raise config.Error(f'depth={depth} does not divide into {stages} stages x {self.circuits} circuits; '
                               f'try depth={near}.')
        if batches < stages:
            raise config.Error(f'pipeline.batches={batches} leaves some of {stages} stages idle; '
                               f'try pipeline.batches={stages}.')
        if rows % batches:
            near = max(1, round(rows / batches)) * batches
            raise config.Error(f'{rows} rows do not divide into pipeline.batches={batches}; try {near} rows.')
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
    batches, circuits = pipeline.over(count, depth, len(x)), pipeline.circuits
    layers = jax.tree.map(lambda a: _by_stage(a, count, circuits), layers)
    waiting, rows = jax.tree.map(lambda a: _split(a, batches), (x, rows))
    stage = jnp.arange(count)

    def work(layers, x, index, circuit):
        mine = jax.tree.map(lambda a: a[0] if circuits == 1 else a[circuit], layers)
        return apply(mine, x, jax.tree.map(lambda a: a[index], rows))
    everyone = jax.vmap(work, spmd_axis_name='stage')

    def turn(carry, now):
        moving, waiting, total = carry
        place = now - stage
        index, circuit = place % batches, jnp.clip(place // batches, 0, circuits - 1)
        busy = (place >= 0) & (place < batches * circuits)
        moving = jnp.concatenate([waiting[index[0]][None], moving[:-1]])
        moving = sharding.constrain(moving, 'layers', 'batch', 'length', None)
        moving, out = everyone(layers, moving, index, circuit)
        done = jnp.where(busy[-1], moving[-1], waiting[index[-1]])
        waiting = jax.lax.dynamic_update_index_in_dim(waiting, done, index[-1], 0)
        total = jax.tree.map(lambda t, o: t.at[stage, circuit].add(
            jnp.where(busy.reshape(-1, *[1] * (o.ndim - 1)), o, 0) / batches), total, out)
        return (moving, waiting, total), None

    empty = jnp.zeros((count, *waiting.shape[1:]), x.dtype)
    none = jax.tree.map(lambda o: jnp.zeros((count, circuits, *o.shape[1:]), o.dtype),
                        jax.eval_shape(everyone, layers, empty, stage, stage)[1])
    (_, waiting, total), _ = jax.lax.scan(turn, (empty, waiting, none), jnp.arange(batches * circuits + count - 1))
    return _joined(waiting), jax.tree.map(lambda t: jnp.moveaxis(t, 1, 0).reshape(depth, *t.shape[3:]), total)


def _by_stage(a, count, circuits):
    """Returns layers [L ...] as [stages circuits C ...]: circuit r of stage s has run r * stages + s of C layers."""
    parts = jnp.moveaxis(a.reshape(circuits, count, -1, *a.shape[1:]), 1, 0)
    return sharding.constrain(parts, 'layers', *(None,) * (parts.ndim - 1)) if circuits > 1 else parts


def _split(a, batches):
    """Returns rows [B ...] as micro-batches [M B/M ...]; number i has rows i, i + M, ..., spread as all rows are."""
    return jnp.moveaxis(a.reshape(-1, batches, *a.shape[1:]), 1, 0)


def _joined(a):
    """Returns the rows [B ...] that `_split` made micro-batches of."""
    return jnp.moveaxis(a, 0, 1).reshape(-1, *a.shape[2:])
