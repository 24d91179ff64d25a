"""Steps at which the loss jumps, with what their batch was and what it did to each layer; and `lm train --replay`."""
import bisect
import collections
import json
import math
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp

from lm import config, records, train, trees
from lm.config import files
from lm.debug import replay
from lm.parallel import processes

WINDOW, ENOUGH = 64, 32  # losses that the median is of; how many it takes before any is called high
LEAST = 1e-3  # of the median: the least that counts as one deviation
SHARE = 20  # going back for a closer look may repeat one step in so many of a run's


class Spike(Exception):
    """The loss jumped at step `args[0]`, and the checkpoint before it is near enough to go back for a closer look."""


class Watch:
    """Tells where a run's loss jumps, and leaves spikes/STEP.json there.

    A loss is high that is not finite, or above the median of the last WINDOW by more than `settings.spike` deviations:
    the distance between their quartiles over 1.349, as a normal distribution's would be. It jumps where it is high and
    the one before was not. `losses` are the last ones, from which a resumed run goes on.
    """

    def __init__(self, settings, run, stream, patient=True):
        self.settings, self.run, self.stream = settings, run, stream
        self.left = max(settings.steps // SHARE, settings.cadence.save + 1) if patient else 0
        self.looked, self.layers = set(), {}
        self.begin({'losses': [], 'offset': 0})

    def begin(self, meta):
        """Starts anew from what is kept with a checkpoint."""
        self.losses, self.ordered = collections.deque(meta['losses']), sorted(meta['losses'])
        self.offset, self.high = meta['offset'], False

    def level(self):
        """Returns (median, deviation) of the last losses, or None while they are too few."""
        count = len(self.ordered)
        if count < ENOUGH:
            return None
        low, middle, high = (self.ordered[count * quarter // 4] for quarter in (1, 2, 3))
        return middle, max((high - low) / 1.349, LEAST * abs(middle))

    def jumps(self, loss):
        """Returns whether the loss jumps at the next step, and takes it among the last."""
        known, before = self.level(), self.high
        limit = known[0] + self.settings.diagnosis.spike * known[1] if known else math.inf
        self.high = bool(self.settings.diagnosis.spike) and (not math.isfinite(loss) or loss > limit)
        if math.isfinite(loss):
            self.losses.append(loss)
            bisect.insort(self.ordered, loss)
        if len(self.losses) > WINDOW:
            del self.ordered[bisect.bisect_left(self.ordered, self.losses.popleft())]
        return self.high and not before

    def see(self, step, values):
        """Takes what a step measured, records it where the loss jumps, and returns whether to go back to look closely.
        """
        known = self.level()
        if not self.jumps(values['loss']):
            return False
        median, deviation = known or (None, None)
        layers = self.layers.pop(step, None)
        about = {'step': step, 'loss': values['loss'], 'median': median, 'deviation': deviation}
        found = record(about, values, self.stream, (step - 1 + self.offset, layers))
        back = layers is None and self.worth(step)
        self.run.writer.tell(processes.decide(partial(keep, self.run.directory, found, back)))
        return back

    def worth(self, step):
        """Returns whether going back to the last checkpoint is worth what it takes, and counts that if so."""
        cost = step + 1 - max(processes.decide(self.run.store.steps), default=0)
        if step in self.looked or cost > self.left:
            return False
        self.looked.add(step)
        self.left -= cost
        return True

    def look(self, program, state, batch, step):
        """Measures the layers at a step that the run has gone back for, from the State before it."""
        if step in self.looked:
            self.layers = {step: anatomy(self.settings, program, state, batch)}


def record(about, values, stream, measured):
    """Returns the record of a step: `about` it, what it measured, where its batch comes from, and (batch, layers)."""
    number, layers = measured
    return {**about, 'loss': values['loss'], 'grad_norm': values['grad_norm'], 'batch': number, 'layers': layers,
            'passages': [passage._asdict() for passage in stream.passages(number)]}


def keep(directory, found, back):
    """Writes the record of a step and returns the line that tells of it."""
    level = '' if found['median'] is None else f' from about {found["median"]:.4g}'
    what = f'step {found["step"]}: the loss jumps{level} to {found["loss"]:.4g}'
    try:
        write(directory, found)
    except OSError as error:
        return f'{what}; it cannot be recorded: {error.strerror}.'
    then = ('' if found['layers'] else '; going back to the last checkpoint to measure its layers' if back else
            f'; the same line with --replay={found["step"]} measures its layers')
    return f'{what}: see {path(directory, found["step"])}{then}.'


def path(directory, step):
    """Returns where the record of a step is."""
    return Path(directory) / 'spikes' / f'{step}.json'


def read(directory, step):
    """Returns the record of a step of a run, or None."""
    file = path(directory, step)
    return json.loads(file.read_text()) if file.exists() else None


def write(directory, found):
    """Writes the record of a step, in place of one that was there. Numbers that are not finite become null."""
    file = path(directory, found['step'])
    file.parent.mkdir(exist_ok=True)
    layers = found['layers'] and [records.finite(row) for row in found['layers']]
    text = json.dumps({**records.finite(found), 'layers': layers}, indent=1, ensure_ascii=False)
    files.replace(file, text + '\n')


def anatomy(settings, program, state, batch):
    """Returns what a step does to each layer's tensors, from the State before it, which stays as it is.

    A list of {'name', 'layer', 'gradient', 'weight', 'update', 'ratio', 'bits'} in the order in which the model reads
    them: norms of the gradient before clipping, of the parameters and of what is added to them, the last over the
    second, and the checksums of all three. An array that holds all layers has one row a layer; 'layer' is null for
    others.
    """
    order, stacked = replay.reading(settings, program)
    parts = train.parts(settings)

    def sized(name, x):
        def one(x):
            return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)))), trees.checksums(x)
        return jax.vmap(one)(x) if name in stacked else one(x)

    def measure(state, batch):
        grads, _ = parts.gradient(state, batch)
        updates, _ = parts.optimizer.update(grads, state.optimizer, state.params)
        return [{name: sized(name, x) for name, x in trees.flatten(tree).items()}
                for tree in (grads, state.params, updates)]
    whole = jax.sharding.NamedSharding(program.mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(program.mesh):
        found = jax.device_get(jax.jit(measure, out_shardings=whole)(state, batch))
    rows = []
    for name in order:
        if name not in stacked:
            rows.append(_row(name, None, [each[name] for each in found]))
        elif name == stacked[0]:
            rows += [_row(other, layer, [(each[other][0][layer], each[other][1][layer]) for each in found])
                     for layer in range(len(found[0][name][0])) for other in stacked]
    return rows


def _row(name, layer, found):
    gradient, weight, update = (float(norm) for norm, _ in found)
    return {'name': name, 'layer': layer, 'gradient': gradient, 'weight': weight, 'update': update,
            'ratio': update / weight if weight else None, 'bits': [int(bits) for _, bits in found]}


def again(settings, directory, cache, step):
    """Computes a step of a run again, writes its record, and returns whether the loss is what it was, if that is known.

    Raises config.Error where the run is another, its data has changed, or it has not come so far.
    """
    replay.matching(settings, directory)
    past, known = replay.Past(directory, settings, cache), read(directory, step)
    last = max([record['step'] for record in past.records if 'loss' in record], default=0)
    if not 1 <= step <= last:
        raise config.Error(f'replay={step} is not one of the steps 1 to {last} that {directory} has on record.')
    past.check()
    if known:
        past.follow(known['batch'] - step + 1)
    start = past.starts(step - 1)[0]
    print(f'computing step {step} again from {f"checkpoint {start}" if start else "the start"}.', flush=True)
    state, passed = past.restore(start), {}
    for each in range(start + 1, step):
        state, values = past.step(state, each)
        passed[each] = values['loss']
    layers = anatomy(settings, past.program, state, past.batch(step))
    _, values = past.step(state, step)
    about = known or {'step': step, 'loss': None, 'median': None, 'deviation': None}
    found = record(about, values, past.stream, (past.number(step), layers))
    passed[step] = values['loss']
    expected = {record['step']: record['loss'] for record in past.records if 'loss' in record}
    expected |= {step: known['loss']} if known else {}
    processes.decide(partial(write, directory, found))
    print('\n'.join([*compared(passed, expected), *striking(layers), f'record: {path(directory, step)}']))
    return all(passed[each] == expected[each] for each in passed.keys() & expected.keys())


def compared(passed, expected):
    """Returns the lines that say how {step: loss} computed again compares with what is on record, the last step first.
    """
    last = max(passed)
    said = f'step {last}: loss {passed[last]} here'
    if last not in expected:
        lines = [f'{said}; none is on record.']
    elif passed[last] == expected[last]:
        lines = [f'{said} and on record, equal to the last bit.']
    else:
        lines = [f'{said}, {expected[last]} on record.']
    known = [step for step in passed if step in expected and step != last]
    unlike = [step for step in known if passed[step] != expected[step]]
    if unlike:
        lines.append(f'on the way, step {unlike[0]} is the first that differs from its record: other code, versions or '
                     'devices computed it.')
    elif known:
        said = f'all {len(known)} losses on record are' if len(known) > 1 else 'the one loss on record is'
        lines.append(f'on the way, {said} equal to the last bit.')
    return lines


def striking(layers):
    """Returns the lines that name the tensors with the largest gradient and with the largest update over weight."""
    lines = []
    for what, key in (('largest gradient', 'gradient'), ('largest update over weight', 'ratio')):
        bad = [row for row in layers if row[key] is not None and not math.isfinite(row[key])]
        row = bad[0] if bad else max((row for row in layers if row[key] is not None), key=lambda row: row[key])
        lines.append(f'{what}: {row[key]:.4g} in {titled(row)}')
    return lines


def titled(row):
    """Returns the name of a row of `anatomy`."""
    return row['name'] if row['layer'] is None else f'{row["name"]}, layer {row["layer"]}'


def unlike(a, b):
    """Returns the words for the first tensor in which two records of one step, by any code, differ, or None."""
    if a['passages'] != b['passages']:
        return 'the batch'
    for place, what in ((1, 'weight'), (0, 'gradient'), (2, 'update')):
        for x, y in zip(a['layers'], b['layers']):
            if (x['name'], x['bits'][place]) != (y['name'], y['bits'][place]):
                return f'{what} {titled(x)}: of norm {x[what]:.9g} in A, {y[what]:.9g} in B'
    return None
