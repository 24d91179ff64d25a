"""Trials that differ only in numbers as one program: vmap of the pure step over an axis C of trials."""
import copy
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, records, train
from lm.parallel import sharding

_known = {}
DEVICES = '--xla_force_host_platform_device_count'


def spread(count, environ=os.environ):
    """Asks for a device on each core of a CPU, up to `count`, among which trials are shared out; what is set stays.

    It must come before anything touches a device. Trials say nothing to each other, so that no core waits for another.
    """
    given = environ.get('XLA_FLAGS', '')
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    if DEVICES not in given:
        environ['XLA_FLAGS'] = f'{given} {DEVICES}={min(count, cores)}'.strip()


def alone(settings):
    """Returns the mesh for a trial on its own in a worker that spreads others: one device of a CPU, which uses all its
    cores, as several would wait for each other; None for the trial's own.
    """
    if jax.default_backend() != 'cpu' or settings.mesh != {'data': -1}:
        return None
    return sharding.make_mesh({'data': 1}, jax.devices()[:1])


def akin(a, b):
    """Returns whether two trials can be one program: they differ in seeds and in numbers that the step can trace."""
    changed = config.diff(a.settings, b.settings)
    return saved(a) == saved(b) and all(
        key in records.SEEDS or (type(x) is type(y) is float and traceable(a.settings, key))
        for key, (x, y) in changed.items())


def saved(trial):
    """Returns the last saved step of a trial, 0 where there is none."""
    folder = trial.directory / 'checkpoints'
    names = os.listdir(folder) if folder.exists() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


def traceable(settings, key):
    """Returns whether a step can be made without knowing the number at a dotted key, as jax finds by trying.

    It cannot where Python branches on it: a clip of 0.0 is another program than any other.
    """
    def run(number):
        parts = train.parts(planted(settings, {key: number}))
        state = parts.init()
        return state, parts.step(state, settings.data.example())[0]
    known = type(settings.model), type(settings.optimizer), type(settings.optimizer.schedule), key
    if known not in _known:
        try:
            before, after = jax.eval_shape(run, jax.ShapeDtypeStruct((), jnp.float32))
            _known[known] = jax.tree.map(lambda x: x.dtype, before) == jax.tree.map(lambda x: x.dtype, after)
        except (TypeError, ValueError, AttributeError):
            _known[known] = False
    return _known[known]


def planted(value, changes):
    """Returns a component with values put in at dotted keys, unchecked: a number being traced has no value to check."""
    groups = {}
    for key, change in changes.items():
        name, _, rest = key.partition('.')
        groups.setdefault(name, {})[rest] = change
    new = copy.copy(value)
    for name, group in groups.items():
        object.__setattr__(new, name, group[''] if '' in group else planted(getattr(value, name), group))
    return new


class Program(NamedTuple):
    """C trials made executable: `numbers` [C] by key, and functions of them with C leading all that they take and give.

    init(numbers) -> states, step(numbers, states, batches) -> (states, metrics), sums(numbers, states, batch) -> [C
    sources 2] of one batch for all. `place` says on which devices they are.
    """

    numbers: dict
    init: Any
    step: Any
    sums: Any
    place: jax.sharding.NamedSharding


def program(trials, sources=1):
    """Returns the Program of akin trials, spread over as many devices as divide their number."""
    lead = trials[0].settings
    keys = {key for trial in trials for key in config.diff(lead, trial.settings)} - {'seed', 'data.seed'}
    leaves = [config.flatten(trial.settings) for trial in trials]
    numbers = {key: np.array([each[key] for each in leaves], np.float32) for key in sorted(keys)}
    numbers['seed'] = np.array([trial.settings.seed for trial in trials], np.int32)
    count = max(n for n in range(1, len(jax.devices()) + 1) if len(trials) % n == 0)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ('trials',))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('trials'))

    def init(numbers):
        return train.parts(planted(lead, numbers)).init()

    def step(numbers, state, batch):
        return train.parts(planted(lead, numbers)).step(state, batch)

    def sums(numbers, state, batch):
        settings = planted(lead, numbers)
        params = settings.optimizer.averaged(state.optimizer, state.params)
        return settings.objective.sums(settings.model, sources, params, batch)

    def all_sums(numbers, states, batch):
        return _each(lambda *one: sums(*one, batch), mesh)(numbers, states)
    return Program(jax.device_put(numbers, place), jax.jit(_each(init, mesh), out_shardings=place),
                   jax.jit(_each(step, mesh), donate_argnums=1, out_shardings=(place, place)),
                   jax.jit(all_sums), place)


def _each(function, mesh):
    """Returns a function of all trials: vmap, but on CPUs one after another, which keeps the activations of each in the
    caches of its CPU.
    """
    if jax.default_backend() != 'cpu':
        return jax.vmap(function)
    over = mesh.axis_names
    return jax.shard_map(lambda *given: jax.lax.map(lambda one: function(*one), given), mesh=mesh,
                         in_specs=jax.sharding.PartitionSpec(*over), out_specs=jax.sharding.PartitionSpec(*over))
