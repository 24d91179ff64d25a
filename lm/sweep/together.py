"""Trials that differ only in numbers as one program: vmap of the pure step over an axis C of trials."""
import contextlib
import copy
import os
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, evaluate, hosts, loop, runs, sharding
from lm import train as training
from lm.data import loader
from lm.data.cache import home

_known = {}


def akin(a, b):
    """Returns whether two trials can be one program: they differ in seeds and in numbers that the step can trace."""
    changed = config.diff(a.settings, b.settings)
    return saved(a) == saved(b) and all(
        key in ('seed', 'data.seed') or (type(x) is type(y) is float and traceable(a.settings, key))
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
        init, step = training.functions(planted(settings, {key: number}))
        state = init()
        return state, step(state, settings.data.example())[0]
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
        return training.functions(planted(lead, numbers))[0]()

    def step(numbers, state, batch):
        return training.functions(planted(lead, numbers))[1](state, batch)

    def sums(numbers, state, batch):
        settings = planted(lead, numbers)
        params = settings.optimizer.averaged(state.optimizer, state.params)
        return evaluate.sums(settings.model, sources, params, batch)
    return Program(jax.device_put(numbers, place), jax.jit(jax.vmap(init), out_shardings=place),
                   jax.jit(jax.vmap(step), donate_argnums=1, out_shardings=(place, place)),
                   jax.jit(jax.vmap(sums, (0, 0, None))), place)


class Lane:
    """One trial of several in one program: its place on the axis C, its run, its stream, whether it still writes."""

    def __init__(self, number, trial, run, stream):
        self.number, self.trial, self.run, self.stream, self.open = number, trial, run, stream, True
        self.meta = {'offset': 0, 'data': dict(stream.fingerprint)}
        self.log = loop.Log(trial.settings, run.writer)

    def restore(self, abstract):
        """Returns the state of the newest checkpoint, or None of a new run."""
        found = self.run.store.restore(abstract)
        if found is None:
            return None
        loop.check_data(found[1], self.meta)
        state, self.meta = found
        return state

    def leave(self):
        """Ends what the lane writes; its numbers are computed on, for nobody."""
        self.open = False


def train(sweep, chosen, cache, lagging):
    """Trains akin trials as one program as far as they go, and returns the ids of those that must go on alone.

    `lagging(sweep, trials, step)` are the ids of those that stop. Raises loop.Stopped when asked to stop, after saving.
    """
    print(f'{len(chosen)} trials as one program: {", ".join(trial.id for trial in chosen)}', flush=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, 'w'))))
        stop = hosts.Stop()
        stop.heed()
        stack.callback(stop.forget)
        lanes, busy = _lanes(sweep, chosen, cache, stack)
        if lanes:
            group = Group(sweep, lanes, cache, lagging)
            group.train(stop)
            return busy | {lane.trial.id for lane in lanes if lane.log.bad >= lane.trial.settings.patience}
    return busy


def _lanes(sweep, chosen, cache, stack):
    streams, lanes, busy = {}, [], set()
    for trial in chosen:
        experiment, data = config.Experiment(trial.settings, {}, sweep.directory / 'experiment.py'), trial.settings.data
        try:
            run = runs.Run(trial.directory, experiment)
        except runs.Busy:
            busy.add(trial.id)
            continue
        stack.callback(run.close)
        if data.seed not in streams:
            streams[data.seed] = data.open(cache, 'train')
        runs.keep_tokenizer(run.directory, home(data.train, data.tokenizer, cache))
        lanes.append(Lane(len(lanes), trial, run, streams[data.seed]))
    return lanes, busy


class Group:
    """The loop over one program of several trials."""

    def __init__(self, sweep, lanes, cache, lagging):
        self.sweep, self.lanes, self.lagging = sweep, lanes, lagging
        self.settings = lanes[0].trial.settings
        loop.check_vocabulary(self.settings.model, lanes[0].stream.encoder)
        self.valid = self.settings.data.open(cache, 'valid') if self.settings.data.valid else None
        self.program = program([lane.trial for lane in lanes], len(self.valid.sources) if self.valid else 1)

    @property
    def open(self):
        """The lanes that still write."""
        return [lane for lane in self.lanes if lane.open]

    def begin(self):
        """Returns the states of all lanes, [C ...], from their newest checkpoints if they have any."""
        one = sharding.make_mesh({'data': 1}, jax.devices()[:1])
        abstract = training.program(planted(self.settings, {'mesh': {'data': 1}}), one).abstract
        states = [lane.restore(abstract) for lane in self.lanes]
        if None in states:
            return self.program.init(self.program.numbers)
        return jax.device_put(jax.tree.map(lambda *each: np.stack(each), *jax.device_get(states)), self.program.place)

    def serve(self, step):
        """Returns the batches of a step, [C B ...]."""
        batches = [lane.stream.batch_at(step + lane.meta['offset']) for lane in self.lanes]
        return jax.device_put({name: np.stack([each[name] for each in batches]) for name in batches[0]},
                              self.program.place)

    def train(self, stop):
        """Trains to the end, saving, validating and recording as each trial's own run would."""
        states, settings, pending = self.begin(), self.settings, None
        start = int(states.step[0])
        with contextlib.closing(loader.prefetch(self.serve, start)) as batches:
            for step, batch in batches if start < settings.steps else ():
                states, measured = self.program.step(self.program.numbers, states, batch)
                self.record(pending)
                pending, done = (step + 1, measured), step + 1
                slow = self.lagging(self.sweep, [lane.trial for lane in self.open], step)
                lagging = [lane for lane in self.open if lane.trial.id in slow]
                stopping, last = stop.reached(done), done == settings.steps
                if stopping or last or lagging or _due(done, settings.save_every) or _due(done, settings.eval_every):
                    pending = self.record(pending)
                if stopping or last or _due(done, settings.save_every):
                    self.save(done, states, self.open)
                elif lagging:
                    self.save(done, states, lagging)
                for lane in lagging:
                    lane.leave()
                if stopping:
                    raise loop.Stopped
                if self.valid and not last and _due(done, settings.eval_every):
                    self.validate(done, states)
                if last or not self.open:
                    break
        if self.valid and self.open:
            self.validate(settings.steps, states)

    def record(self, pending):
        """Writes the metrics of a step into each open lane's record; a lane that is not finite for long leaves."""
        if pending is None:
            return
        step, measured = pending
        measured = jax.device_get(measured)
        for lane in self.open:
            try:
                lane.log.read((step, {name: value[lane.number] for name, value in measured.items()}))
            except loop.NotFinite:
                lane.leave()

    def save(self, step, states, lanes):
        """Saves the state of some lanes, each as its own run would; one that is not finite keeps what it has."""
        whole = jax.device_get(states)
        for lane in lanes:
            if not lane.log.bad or step == self.settings.steps:
                lane.run.store.save(step, jax.tree.map(partial(_part, lane.number), whole), lane.meta)
        for lane in lanes if step == self.settings.steps else ():
            lane.run.store.wait()

    def validate(self, step, states):
        """Records the validation loss of all open lanes: of all batches at the last step."""
        limit = self.settings.eval_batches if step < self.settings.steps else 0
        count = min(limit, self.valid.batches) if limit else self.valid.batches
        sums = [self.program.sums(self.program.numbers, states, self.valid.batch_at(i)) for i in range(count)]
        total = np.sum(jax.device_get(sums), axis=0, dtype=np.float64)
        for lane in self.open:
            scores = evaluate.scores(total[lane.number], self.valid)
            lane.run.writer.write(step, {f'valid/{name}': value for name, value in scores.items()})
            lane.run.store.score(step, scores['loss'])


def _part(number, x):
    return np.asarray(x[number])


def _due(step, every):
    return every > 0 and step % every == 0
