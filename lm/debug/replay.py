"""Steps of a run computed again, from the checkpoint nearest before them."""
import math
from functools import cached_property
from pathlib import Path

import jax

from lm import config, records, train, trees
from lm.parallel import sharding
from lm.train import checkpoint, runs

STABLE = ('loss', 'grad_norm', 'weight', 'bad')  # what a step measures the same each time


def stable(values):
    """Returns those of {name: number} that a step measures the same each time it is computed."""
    return {name: values.get(name) for name in STABLE}


def serve(stream, mesh, offset, step):
    """Returns the batch of a step (from 0) on a mesh; the data is ahead of the step by `offset` batches."""
    return sharding.put(stream.batch_at(step + offset, sharding.rows(stream.batch, mesh)), mesh, stream.batch)


class Past:
    """A run whose steps are computed again, by the program and from the data that trained it; nothing in it changes.

    `settings` may differ from the run's own in what changes no result (records.FREE). Steps count as in the record:
    step 1 takes the first batch, and the state "at" a step is the one after it, 0 the initial one.
    """

    def __init__(self, directory, settings, cache, mesh=None):
        self.directory, self.settings, self.cache = Path(directory), settings, cache
        self.records = records.read(directory)
        self.program = train.program(settings, mesh)
        self.store = checkpoint.Store(self.directory / 'checkpoints', settings.cadence.keep)

    @cached_property
    def stream(self):
        """The training data, as it is now."""
        return self.settings.data.open(self.cache, 'train')

    def starts(self, step):
        """Returns the steps at or before `step` at which the state is known, newest first; the last is 0.

        A checkpoint of before the run went back and round some batches does not lead on to what is recorded.
        """
        def leads(saved):
            meta = self.store.meta(saved)
            return meta is not None and meta['offset'] == records.offset(self.records, saved - 1)
        return [saved for saved in self.store.steps()[::-1] if saved <= step and leads(saved)] + [0]

    def restore(self, step):
        """Returns the State at one of `starts`."""
        if step:
            return self.store.restore(self.program.abstract, step)[0]
        with jax.set_mesh(self.program.mesh):
            return self.program.init()

    def check(self):
        """Raises config.Error where the data is no longer what the newest checkpoint was trained on."""
        metas = [meta for step in self.store.steps()[::-1] if (meta := self.store.meta(step))]
        if metas:
            runs.check_data(metas[0], {'data': dict(self.stream.fingerprint)})

    def follow(self, offset):
        """Takes the course of the run when its data was ahead by `offset`, from which it has gone back since."""
        offsets = [record for record in self.records if 'offset' in record]
        if records.offset(self.records, math.inf) != offset:
            while offsets and offsets[-1]['offset'] != offset:
                offsets.pop()
            self.records = offsets

    def number(self, step):
        """Returns the number of the batch that a step took."""
        return step - 1 + records.offset(self.records, step - 1)

    def batch(self, step):
        """Returns the batch that a step took, on the mesh."""
        return serve(self.stream, self.program.mesh, self.number(step) - step + 1, step - 1)

    def step(self, state, step):
        """Returns (the State at `step`, {name: number, None if not finite}) from the State before it, which is used up.
        """
        with jax.set_mesh(self.program.mesh):
            state, measured = self.program.step(state, self.batch(step))
        return state, records.finite({name: value.item() for name, value in jax.device_get(measured).items()})

    def gradient(self, state, batch):
        """Returns the gradient that a step takes from a State and a batch, which stay as they are."""
        with jax.set_mesh(self.program.mesh):
            return jax.jit(train.parts(self.settings).gradient)(state, batch)[0]


def reading(settings, program):
    """Returns the names of a model's parameters in the order it reads them, and of those that hold all layers."""
    params = program.abstract.params
    with jax.set_mesh(program.mesh):
        order = trees.by_use(train.parts(settings).objective, params, settings.data.example())
    axes = jax.tree.leaves(settings.model.axes(), is_leaf=lambda node: isinstance(node, tuple))
    layered = {name for name, names in zip(trees.flatten(params), axes, strict=True) if names[:1] == ('layers',)}
    return order, [name for name in order if name in layered]


def matching(settings, directory):
    """Raises config.Error unless settings are those of the run in a directory, but for what changes no result."""
    changed = runs.differences(runs.read(directory), settings)
    if changed:
        raise config.Error(f'{directory} is of another experiment: {changed}; give the line it was trained with.')
