"""The loop over several trials in one program, which leaves of each what its own run would."""
import contextlib
import io
import os
from functools import partial

import jax
import numpy as np

from lm import config, evaluate
from lm import train as training
from lm.data import loader
from lm.data.cache import home
from lm.parallel import processes, sharding
from lm.sweep.vectors import planted, program
from lm.train import loop, monitor, runs


class Lane:
    """One trial of several in one program: its place on the axis C, its run, its stream, whether it still writes."""

    def __init__(self, number, trial, run, stream):
        self.number, self.trial, self.run, self.stream, self.open = number, trial, run, stream, True
        self.meta = {**monitor.FRESH, 'data': dict(stream.fingerprint)}
        self.log = monitor.Log(trial.settings, run, stream, patient=False)

    def restore(self, abstract):
        """Returns the state of the newest checkpoint, or None of a new run."""
        found = self.run.store.restore(abstract)
        if found is None:
            return None
        runs.check_data(found[1], self.meta)
        state, meta = found
        self.meta = {**self.meta, **meta}
        self.log.begin(self.meta)
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
        stop = processes.Stop()
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
        if all(state is None for state in states):
            return self.program.init(self.program.numbers)
        if len({-1 if state is None else int(state.step) for state in states}) > 1:
            raise config.Error('their checkpoints are not of one step')
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
                if stopping or last or lagging or _due(done, settings.cadence.save) or _due(done, settings.cadence.eval):
                    pending = self.record(pending)
                if stopping or last or _due(done, settings.cadence.save):
                    self.save(done, states, self.open)
                elif lagging:
                    self.save(done, states, lagging)
                for lane in lagging:
                    lane.leave()
                if stopping:
                    raise loop.Stopped
                if self.valid and not last and _due(done, settings.cadence.eval):
                    self.validate(done, states)
                if last or not self.open:
                    break
        if self.valid and self.open:
            self.validate(settings.steps, states)
        self.sample(jax.device_get(states))

    def sample(self, states):
        """Writes a sample into the directory of each lane that trained to the end."""
        for lane in self.open:
            settings, state = lane.trial.settings, jax.tree.map(partial(_part, lane.number), states)
            params = settings.optimizer.averaged(state.optimizer, state.params)
            loop.sample(settings, params, lane.stream.encoder, lane.run.directory, io.StringIO())

    def record(self, pending):
        """Writes the metrics of a step into each open lane's record; a lane that is not finite for long leaves."""
        if pending is None:
            return
        step, measured = pending
        measured = jax.device_get(measured)
        for lane in self.open:
            try:
                lane.log.read((step, {name: value[lane.number] for name, value in measured.items()}))
            except monitor.NotFinite:
                lane.leave()

    def save(self, step, states, lanes):
        """Saves the state of some lanes, each as its own run would; one that is not finite keeps what it has."""
        whole = jax.device_get(states)
        for lane in lanes:
            if not lane.log.bad or step == self.settings.steps:
                lane.run.store.save(step, jax.tree.map(partial(_part, lane.number), whole), lane.log.kept(lane.meta))
        for lane in lanes if step == self.settings.steps else ():
            lane.run.store.wait()

    def validate(self, step, states):
        """Records the validation loss of all open lanes: of all batches at the last step."""
        limit = self.settings.cadence.eval_batches if step < self.settings.steps else 0
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
