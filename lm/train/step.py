"""Training as pure functions: the experiment's Config, the State, the one step, and both made executable on a mesh."""
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm import config, optim, trees
from lm.data import Corpus
from lm.parallel import reductions, sharding


@dataclass(frozen=True)
class Config:
    """An experiment: what to train, on what, how, and for how many steps.

    mesh: sizes of its axes, or the name of a cluster, see sharding.make_mesh. zero: the optimizer's state is split over
    the mesh axis data as well as fsdp. accumulate: micro-batches a step, equal to one big batch. Every `log_every`
    steps are logged, every `eval_every` validated on `eval_batches` batches (0 for all, as at the end), every
    `save_every` saved (0: only at the end). The last `keep` checkpoints are kept beside the best. After `patience`
    updates in a row that are not finite the run goes back to the last checkpoint and steps past the batches. spike: how
    many deviations above the running median a loss is recorded as a spike, see spikes.Watch (0: none is). noise_scale:
    whether it is estimated from the micro-batches, see noise.Scale, for the memory of about a gradient. sample:
    prompt of the sample shown at the end. baselines: whether compressors are measured on the held-out text at the end.
    """

    model: Any
    data: Corpus
    optimizer: optim.Optimizer
    steps: int
    seed: int = 0
    mesh: dict[str, int] | str = field(default_factory=lambda: {'data': -1})
    zero: bool = False
    accumulate: int = 1
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 0
    save_every: int = 0
    keep: int = 2
    patience: int = 5
    spike: float = 8.0
    noise_scale: bool = False
    sample: str = '\n'
    baselines: bool = False

    def __post_init__(self):
        config.positive(self, 'steps', 'accumulate', 'log_every', 'keep', 'patience')
        if self.noise_scale and self.accumulate == 1:
            raise config.Error('noise_scale=true compares micro-batches and accumulate=1 makes one; try accumulate=2.')
        if not self.spike >= 0:
            raise config.Error(f'spike={self.spike} is not a number of deviations; try spike=8.0, or 0.0 for none.')
        if self.data.batch % self.accumulate:
            near = max(1, round(self.data.batch / self.accumulate)) * self.accumulate
            raise config.Error(f'data.batch={self.data.batch} is not a multiple of accumulate={self.accumulate}; '
                               f'try data.batch={near}.')
        self.optimizer.rate(self.steps)


class State(NamedTuple):
    """Everything a step changes. bad: how many updates in a row were skipped because they were not finite."""

    step: jax.Array
    params: dict
    optimizer: Any
    bad: jax.Array


def unadjusted(params, measured):
    """Returns its arguments: what a step does with its metrics where the model asks for nothing else."""
    return params, measured


def make_step(loss, tx, seed=0, accumulate=1, adjusted=unadjusted, *, noise_scale=False):
    """Returns step(state, batch) -> (state, metrics), pure: randomness comes from the seed and state.step alone.

    `loss(params, batch, key) -> (loss, metrics)` is a mean over metrics['weight'] tokens. `adjusted(params, metrics) ->
    (params, metrics)` comes after the optimizer, for what learns without a gradient. An update whose loss or gradient
    is not finite leaves parameters and optimizer as they were. noise_scale: see `accumulated`.
    """
    gradient = gradients(loss, seed, accumulate, noise_scale=noise_scale)

    def step(state, batch):
        grads, measured = gradient(state, batch)
        norm = trees.norm(grads)
        finite = jnp.isfinite(measured['loss']) & jnp.isfinite(norm)
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        params, measured = adjusted(jax.tree.map(jnp.add, state.params, updates), measured)
        params, optimizer = jax.tree.map(partial(jnp.where, finite), (params, optimizer),
                                         (state.params, state.optimizer))
        bad = jnp.where(finite, 0, state.bad + 1)
        return State(state.step + 1, params, optimizer, bad), {**measured, 'grad_norm': norm, 'bad': bad}
    return step


def gradients(loss, seed=0, accumulate=1, *, noise_scale=False):
    """Returns gradient(state, batch) -> (gradient, metrics): what a step takes it from, by `make_step`'s arguments."""
    def gradient(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        return accumulated(loss, accumulate, noise_scale=noise_scale)(state.params, batch, key)
    return gradient


def accumulated(loss, parts, *, noise_scale=False):
    """Returns gradient(params, batch, key) -> (gradient, metrics) of `loss`, computed `parts` micro-batches at a time.

    Micro-batch i takes rows i, i + parts, ..., so that each stays spread over the mesh as the batch is. Each counts by
    its metrics['weight'], which makes the sum the gradient of the mean over the whole batch; so does each part of the
    mesh axis data, which sees its own rows alone where `sums.once` sets it apart. noise_scale: the metrics of two
    or more have 'grad_square' too, the mean of the squared norms of their gradients, see noise.Scale; each of those is
    summed over the mesh then.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient

    def weigh(params, batch, key):
        grads, measured = gradient(params, batch, key)
        if noise_scale:
            measured = {**measured, 'grad_square': jnp.square(trees.norm(grads))}
        weight = measured['weight']
        return jax.tree.map(lambda x: x * weight, (grads, {**measured, 'weight': jnp.ones_like(weight)})), weight

    def add_up(params, batch, key):
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)

        def add(total, part):
            return jax.tree.map(jnp.add, total, weigh(params, *part)), None
        given = (split, jax.random.split(key, parts))
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                            jax.eval_shape(weigh, params, *jax.tree.map(lambda x: x[0], given)))
        return jax.lax.scan(add, zero, given)[0]

    def sweep(params, batch, key):
        (grads, measured), weight = (add_up if noise_scale else reductions.once(add_up))(params, batch, key)
        grads, measured = jax.tree.map(lambda x: x / jnp.maximum(weight, 1e-9), (grads, measured))
        return grads, {**measured, 'weight': weight}
    return sweep


def functions(settings):
    """Returns the pure functions init() -> State and step(state, batch) -> (State, metrics) of a Config."""
    model = settings.model
    tx = settings.optimizer.make(settings.steps, model.axes(), model.tuned())

    def init():
        params = model.init(jax.random.key(settings.seed))
        return State(jnp.int32(0), params, tx.init(params), jnp.int32(0))
    return init, make_step(model.loss, tx, settings.seed, settings.accumulate, model.adjusted,
                           noise_scale=settings.noise_scale)


class Program(NamedTuple):
    """A Config made executable on a mesh: init() -> state, step(state, batch) -> (state, metrics), state's shapes."""

    mesh: jax.sharding.Mesh
    init: Any
    step: Any
    abstract: State


def placed(settings, mesh):
    """Returns the State of a Config on a mesh as ShapeDtypeStructs with shardings.

    Raises config.Error where a size of the model does not divide over the mesh.
    """
    axes, shapes = settings.model.axes(), jax.eval_shape(functions(settings)[0])
    sharding.check(shapes.params, axes, mesh)
    places = sharding.mirror(shapes, axes, mesh)
    if settings.zero:
        places = places._replace(optimizer=sharding.mirror(shapes.optimizer, axes, mesh, sharding.ZERO))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)


def program(settings, mesh=None):
    """Returns the Program of a Config on a mesh, by default its own over all devices; nothing is compiled yet.

    Raises config.Error where a micro-batch or a size of the model does not divide over the mesh.
    """
    mesh = sharding.make_mesh(settings.mesh) if mesh is None else mesh
    sharding.check_rows(settings.data.batch, settings.accumulate, mesh)
    init, step = functions(settings)
    abstract = placed(settings, mesh)
    places = jax.tree.map(lambda x: x.sharding, abstract)
    step = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
    return Program(mesh, jax.jit(init, out_shardings=places), step, abstract)
