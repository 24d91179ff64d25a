"""Trials that differ only in numbers as one program: vmap of the pure step over an axis C of trials."""
import contextlib
import dataclasses
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, records, train
from lm.config.overrides import branches, with_traced_fields
from lm.parallel import sharding
from lm.train import checkpoint
from lm.train.objectives.objective import validation_key

_known = {}
DEVICES = '--xla_force_host_platform_device_count'


def spread(count, environ=os.environ):
    """Makes each core of a CPU a device, up to `count`, over which trials are spread; XLA_FLAGS that say how many stay.

    It must come before anything touches a device. Trials do not communicate, so that no core waits for another.
    """
    flags = environ.get('XLA_FLAGS', '')
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    if DEVICES not in flags:
        environ['XLA_FLAGS'] = f'{flags} {DEVICES}={min(count, cores)}'.strip()


def alone(settings):
    """Returns the mesh for a single trial in a worker that made each core a device: one device, whose threads use all
    cores, as devices would wait for each other; None for the trial's own mesh.
    """
    if jax.default_backend() != 'cpu' or settings.mesh != {'data': -1}:
        return None
    return sharding.make_mesh({'data': 1}, jax.devices()[:1])


def can_vmap(a, b):
    """Returns whether two trials can be one program: they differ only in seeds and in floats that a step can trace."""
    changed = config.diff(a.settings, b.settings)
    return saved(a) == saved(b) and all(
        key in records.SEEDS or (type(x) is type(y) is float and traceable(a.settings, key))
        for key, (x, y) in changed.items())


def saved(trial):
    """Returns the last saved step of a trial, 0 where there is none."""
    return max(checkpoint.steps(trial.directory / 'checkpoints'), default=0)


def traceable(settings, key):
    """Returns whether a step can be traced with the number at a dotted key abstract, by trying.

    It cannot where Python branches on it: a clip of 0.0 is another program than any other.
    """
    def run(number):
        parts = train.parts(with_traced_fields(settings, {key: number}))
        state = parts.init()
        return state, parts.step(state, settings.data.example())[0]
    known = *(type(value) for _, value in branches(settings)), key
    if known not in _known:
        try:
            before, after = jax.eval_shape(run, jax.ShapeDtypeStruct((), jnp.float32))
            _known[known] = jax.tree.map(lambda x: x.dtype, before) == jax.tree.map(lambda x: x.dtype, after)
        except (TypeError, ValueError, AttributeError):
            _known[known] = False
    return _known[known]


@dataclasses.dataclass(frozen=True)
class Trials(train.Program):
    """C trials made executable: states, batches and metrics have a leading axis C, spread over a mesh of `trials`.

    settings: the first trial's. sums(sources, states, batch): the objective's sums [C sources 2] over one validation
    batch, which all trials share.
    """

    sums: Any

    @property
    def place(self):
        """The sharding of all that has the axis C."""
        return jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec('trials'))

    def context(self):
        return contextlib.nullcontext()

    def feed(self, monitors):
        def batch_at(step):
            batches = [monitor.stream.batch_at(step + monitor.offset) for monitor in monitors]
            return jax.device_put({name: np.stack([batch[name] for batch in batches]) for name in batches[0]},
                                  self.place)
        return batch_at

    def join(self, states):
        return jax.device_put(jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(states)), self.place)

    def split(self, tree):
        whole = jax.device_get(tree)
        return [jax.tree.map(lambda x, i=i: np.asarray(x[i]), whole) for i in range(len(jax.tree.leaves(whole)[0]))]

    def score(self, state, valid, batches=0):
        count = min(batches, valid.batches) if batches else valid.batches
        sums = [self.sums(len(valid.sources), state, valid.batch_at(i), i) for i in range(count)]
        total = jax.tree.map(lambda *arrays: np.sum(arrays, axis=0, dtype=np.float64), *jax.device_get(sums))
        return [self.settings.objective.scores(own, valid) for own in self.split(total)]


def program(trials):
    """Returns the Trials of some that `can_vmap`, spread over as many devices as divide their number."""
    lead = trials[0].settings
    keys = {key for trial in trials for key in config.diff(lead, trial.settings)} - {'seed', 'data.seed'}
    leaves = [config.flatten(trial.settings) for trial in trials]
    numbers = {key: np.array([flat[key] for flat in leaves], np.float32) for key in sorted(keys)}
    numbers['seed'] = np.array([trial.settings.seed for trial in trials], np.int32)
    count = max(n for n in range(1, len(jax.devices()) + 1) if len(trials) % n == 0)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ('trials',))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('trials'))

    def init(numbers):
        return train.parts(with_traced_fields(lead, numbers)).init()

    def step(numbers, state, batch):
        return train.parts(with_traced_fields(lead, numbers)).step(state, batch)

    def sums(numbers, sources, states, batch, number):
        def one(numbers, state):
            settings = with_traced_fields(lead, numbers)
            params = settings.optimizer.averaged(state.optimizer, state.params)
            return settings.objective.sums(settings.model, sources, params, batch, validation_key(number))
        return _each(one, mesh)(numbers, states)
    # The numbers are arguments of what is compiled, so that groups with other numbers find it in the compilation cache.
    numbers = jax.device_put(numbers, place)
    return Trials(lead, mesh, partial(jax.jit(_each(init, mesh), out_shardings=place), numbers),
                  partial(jax.jit(_each(step, mesh), donate_argnums=1, out_shardings=(place, place)), numbers),
                  train.placed(lead, sharding.make_mesh({'data': 1}, jax.devices()[:1])),
                  partial(jax.jit(sums, static_argnums=1), numbers))


def _each(function, mesh):
    """Returns `function` over a leading axis C: vmap, but on CPUs one trial after another, which stays in the caches.
    """
    if jax.default_backend() != 'cpu':
        return jax.vmap(function)
    spec = jax.sharding.PartitionSpec('trials')
    # Not check_vma: an initial carry that is the same for all trials and then their own would be refused.
    return jax.shard_map(lambda *args: jax.lax.map(lambda one: function(*one), args), mesh=mesh, in_specs=spec,
                         out_specs=spec, check_vma=False)
