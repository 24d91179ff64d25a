"""Training as pure functions: the State, the one step, what an experiment is made of, and all of it on a mesh."""
import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lm import config, trees
from lm.parallel import reductions, sharding
from lm.train import feed


class State(NamedTuple):
    """Everything a step changes. bad: how many updates in a row were skipped because they were not finite."""

    step: jax.Array
    params: dict
    optimizer: Any
    bad: jax.Array


def make_step(loss, tx, seed=0, accumulate=1, post_update=lambda params, metrics: (params, metrics), *,
              noise_scale=False, at=None):
    """Returns step(state, batch) -> (state, metrics), pure: randomness comes from the seed and state.step alone.

    `loss(params, batch, key) -> (loss, metrics)` is a mean over metrics['weight'] tokens. `post_update(params, metrics)
    -> (params, metrics)` is applied after the optimizer, for parameters learned without a gradient (router bias). An
    update whose loss or gradient is not finite leaves parameters and optimizer as they were. noise_scale: see
    `accumulated`. at(step): the loss at a step, where it changes with it.
    """
    gradient = gradients(loss, seed, accumulate, noise_scale=noise_scale, at=at)

    def step(state, batch):
        grads, metrics = gradient(state, batch)
        norm = trees.norm(grads)
        finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(norm)
        updates, optimizer = tx.update(grads, state.optimizer, state.params)
        params, metrics = post_update(jax.tree.map(jnp.add, state.params, updates), metrics)
        params, optimizer = jax.tree.map(partial(jnp.where, finite), (params, optimizer),
                                         (state.params, state.optimizer))
        bad = jnp.where(finite, 0, state.bad + 1)
        return State(state.step + 1, params, optimizer, bad), {**metrics, 'grad_norm': norm, 'bad': bad}
    return step


def gradients(loss, seed=0, accumulate=1, *, noise_scale=False, at=None):
    """Returns gradient(state, batch) -> (gradient, metrics): what a step takes it from, by `make_step`'s arguments."""
    def gradient(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        now = at(state.step) if at else loss
        return accumulated(now, accumulate, noise_scale=noise_scale)(state.params, batch, key)
    return gradient


def accumulated(loss, parts, *, noise_scale=False):
    """Returns gradient(params, batch, key) -> (gradient, metrics) of `loss`, computed `parts` micro-batches at a time.

    Micro-batch i takes rows i, i + parts, ..., so that each stays spread over the mesh as the batch is. Each counts by
    its metrics['weight'], which makes the sum the gradient of the mean over the whole batch, for every term that is a
    mean over tokens; the balance loss of experts is not, see nn.Experts. Noise is drawn by the numbers of rows in the
    whole batch. So does each part of the mesh axis data, which
    sees its own rows alone inside `reductions.all_reduce_once`. noise_scale: the metrics of two or more have
    'grad_square' too, the mean of the squared norms of their gradients, see noise_scale.Scale; each of those is summed
    over the mesh then.
    """
    gradient = jax.grad(loss, has_aux=True)
    if parts == 1:
        return gradient

    def weigh(number, params, batch, key):
        with reductions.micro_batch(number, parts):
            grads, measured = gradient(params, batch, key)
        if noise_scale:
            measured = {**measured, 'grad_square': jnp.square(trees.norm(grads))}
        weight = measured['weight']
        return jax.tree.map(lambda x: x * weight, (grads, {**measured, 'weight': jnp.ones_like(weight)})), weight

    def add_up(params, batch, key):
        split = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)

        def add(total, part):
            return jax.tree.map(jnp.add, total, weigh(part[0], params, part[1], key)), None
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                            jax.eval_shape(weigh, 0, params, jax.tree.map(lambda x: x[0], split), key))
        return jax.lax.scan(add, zero, (jnp.arange(parts), split))[0]

    def whole_batch(params, batch, key):
        (grads, measured), weight = (add_up if noise_scale else reductions.all_reduce_once(add_up))(params, batch, key)
        grads, measured = jax.tree.map(lambda x: x / jnp.maximum(weight, 1e-9), (grads, measured))
        return grads, {**measured, 'weight': weight}
    return whole_batch


class Parts(NamedTuple):
    """What an experiment is made of: the one place where its pure functions are built.

    loss(params, batch, key) -> (loss, metrics): the objective of the model. optimizer: an optax.GradientTransformation.
    gradient(state, batch) -> (gradient, metrics). init(params) -> State, by default of the start's parameters.
    step(state, batch) -> (State, metrics).
    """

    loss: Any
    optimizer: Any
    gradient: Any
    init: Any
    step: Any


def parts(settings):
    """Returns the Parts of a Config."""
    model, start = settings.model, settings.start
    frozen = '|'.join(f'(?:{regex})' for regex in (settings.optimizer.frozen, start.frozen) if regex)
    optimizer = dataclasses.replace(settings.optimizer, frozen=frozen) if start.frozen else settings.optimizer
    tx = optimizer.make(settings.steps, model.axes(), model.base_shapes())
    loss = partial(settings.objective.loss, model)
    how = {'seed': settings.seed, 'accumulate': settings.accumulate, 'noise_scale': settings.diagnosis.noise_scale,
           'at': lambda step: partial(settings.objective.at(step).loss, model)}

    def init(params=None):
        params = start.params(model, jax.random.key(settings.seed)) if params is None else params
        return State(jnp.int32(0), params, tx.init(params), jnp.int32(0))
    return Parts(loss, tx, gradients(loss, **how), init, make_step(loss, tx, post_update=model.post_update, **how))


@dataclasses.dataclass(frozen=True)
class Program:
    """A Config made executable on a mesh: init() -> state, step(state, batch) -> (state, metrics).

    abstract: a run's State as ShapeDtypeStructs with shardings. The methods are all that the loop knows of a state;
    sweep.vectors.Trials has several runs in one.
    """

    settings: Any
    mesh: jax.sharding.Mesh
    init: Any
    step: Any
    abstract: State

    def context(self):
        """Returns the context in which steps are called."""
        return jax.set_mesh(self.mesh)

    def feed(self, monitors):
        """Returns step (from 0) -> its batch, from the streams of the monitors."""
        (monitor,) = monitors
        return partial(feed.serve, monitor.stream, self.mesh, monitor.offset)

    def join(self, states):
        """Returns the state of the program made of the States of its runs."""
        (state,) = states
        return state

    def split(self, tree):
        """Returns the parts [tree of one run] of a state or of metrics."""
        return [tree]

    def score(self, state, valid, batches=0):
        """Returns the [{name: value}] of its runs on a validation stream, of all its batches or the first so many."""
        settings = self.settings
        params = settings.optimizer.averaged(state.optimizer, state.params)
        return [settings.objective.score(settings.model, params, valid, self.mesh, batches)]


def placed(settings, mesh):
    """Returns the State of a Config on a mesh as ShapeDtypeStructs with shardings.

    Raises config.Error where a size of the model does not divide over the mesh.
    """
    return _placed(settings, parts(settings).init, mesh)


def _placed(settings, init, mesh):
    axes, params = settings.model.axes(), settings.start.shapes(settings.model)
    shapes = jax.eval_shape(init, params)
    sharding.check(params, axes, mesh)
    places = sharding.mirror(shapes, axes, mesh)
    if settings.zero:
        places = places._replace(optimizer=sharding.mirror(shapes.optimizer, axes, mesh, sharding.ZERO))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, places)


def _check_batch(settings, params, mesh):
    """Raises config.Error where a batch takes more memory than a device has, whatever the layout.

    That is its inputs and targets, int32, and of a micro-batch the embedded tokens once, in 2 bytes; a step takes more.
    """
    names, leaves = sharding.names_by_path(settings.model.axes()), jax.tree_util.tree_leaves_with_path(params)
    widths = [size for path, x in leaves for name, size in zip(names(path, x), x.shape, strict=True) if name == 'embed']
    data, token = settings.data, 8 + 2 * min(widths, default=0) / settings.accumulate
    size, whole = data.batch * data.context * token / mesh.size, sharding.memory(mesh)
    if size > whole:
        shards = settings.accumulate * mesh.size
        rows = 2 ** int(math.log2(max(1, whole / 16 / (data.context * token) / settings.accumulate))) * shards
        raise config.Error(f'a batch of {data.batch:,} rows of {data.context:,} tokens takes {size / 2 ** 30:,.1f} GiB '
                           f'or more of a device that has {whole / 2 ** 30:,.1f}; try data.batch={rows}.')


def program(settings, mesh=None):
    """Returns the Program of a Config on a mesh, by default its own over all devices; nothing is compiled yet.

    Raises config.Error where a micro-batch or a size does not divide over the mesh, or a device has too little memory.
    """
    mesh = sharding.make_mesh(settings.mesh) if mesh is None else mesh
    sharding.check_rows(settings.data.batch, settings.accumulate, mesh)
    built = parts(settings)
    abstract = _placed(settings, built.init, mesh)
    sharding.check_memory(abstract, mesh)
    _check_batch(settings, abstract.params, mesh)
    places = jax.tree.map(lambda x: x.sharding, abstract)
    begin = jax.jit(built.init, donate_argnums=0, out_shardings=places)

    def init():
        return begin(settings.start.params(settings.model, jax.random.key(settings.seed), mesh))
    return Program(settings, mesh, init, jax.jit(built.step, donate_argnums=0, out_shardings=(places, None)), abstract)
