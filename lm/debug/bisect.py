"""`lm bisect`: where two runs that should be equal part, by their records and by computing their steps again."""
import jax
import numpy as np

from lm import config, records, trees
from lm.debug import replay
from lm.debug.sides import parted
from lm.parallel import sharding
from lm.train import spikes

checksums = jax.jit(trees.checksums)


def meshes(sides):
    """Returns the mesh that each of two runs was trained on, or for both that of one device where there are too few."""
    devices, counts = jax.devices(), [side.about['devices'] for side in sides]
    if max(counts) <= len(devices):
        return [sharding.make_mesh(side.settings.mesh, devices[:n]) for side, n in zip(sides, counts, strict=True)]
    print(f'here are {len(devices)} devices, not {max(counts)}: what follows is computed on one, for both.')
    return [sharding.make_mesh({'data': 1}, devices[:1])] * 2


def pasts(sides, cache):
    """Returns the replay.Past of each run; the two share a program where they would compile the same one."""
    pair = [replay.Past(side.directory, side.settings, cache, mesh)
            for side, mesh in zip(sides, meshes(sides), strict=True)]
    changed = config.diff(*(side.settings for side in sides))
    if pair[0].program.mesh == pair[1].program.mesh and all(records.free(key) and key != 'zero' for key in changed):
        pair[1].program = pair[0].program
    return pair


def unlike_at(pair):
    """Returns the newest step saved by both runs if the states there differ, else None."""
    common = saved_by_both(pair)
    if not common:
        print('checkpoints: no step was saved by both.')
        return None
    unlike = differing(*([past.restore(common[-1]) for past in pair]))
    print(f'checkpoints: {"not " if unlike else ""}equal at step {common[-1]}, the newest that both saved.')
    return common[-1] if unlike else None


def saved_by_both(pair):
    """Returns the steps, ascending, of which both runs have a checkpoint."""
    return sorted(set(pair[0].store.steps()) & set(pair[1].store.steps()))


def differing(a, b):
    """Returns the names of the leaves of two trees that are not equal bit for bit, or that only one of them has."""
    sums = [jax.device_get(checksums(trees.flatten(tree))) for tree in (a, b)]
    return [name for name in sums[0] | sums[1] if sums[0].get(name) != sums[1].get(name)]


def lost(side, past):
    """Returns the line that says what data a run was trained on that is not there now, in a list, or an empty list."""
    try:
        past.check()
    except config.Error as error:
        return [f'first difference: the data. {side.name}: {error}']
    return []


def search(sides, pair, first):
    """Says where two runs part that are known to differ at step `first`, by computing both again."""
    gone = [line for side, past in zip(sides, pair, strict=True) for line in lost(side, past)]
    if gone:
        print('\n'.join(gone))
        return
    start, states = begin(pair, first - 1)
    if differing(*states):
        params = [state.params for state in states]
        words = named(pair[0], params if differing(*params) else states)
        print(f'first difference: before step 1, the initial {words}')
        return
    print(f'computing both again from {f"checkpoint {start}" if start else "the start"} to step {first}.', flush=True)
    off = {}
    for step in range(start + 1, first + 1):
        kept = [trees.copy(state) for state in states]
        states, measured = zip(*(past.step(state, step) for past, state in zip(pair, states, strict=True)), strict=True)
        for side, values in zip(sides, measured, strict=True):
            known = side.records.get(step, values)
            unlike = [name for name in replay.STABLE if known[name] != values[name]]
            if unlike:
                off.setdefault(side.name, f'{unlike[0]} of step {step} is {values[unlike[0]]} here and '
                                          f'{known[unlike[0]]} on record')
        if differing(*states) or measured[0] != measured[1]:
            print(f'first difference: step {step}, {explain(pair, kept, states, step)}')
            if not any(config.diff(side.settings, sides[0].settings) for side in sides):
                print(unexplained(*(past.program.mesh for past in pair)))
            return
    agreed(sides, off, start, first)
    for saved in [saved for saved in saved_by_both(pair) if saved > start]:
        params = [past.restore(saved).params for past in pair]
        if differing(*params):
            print(f'The first saved parameters that differ are of step {saved}, {named(pair[0], params)}')
            break
    print(by_their_own(sides, max(start, 1, parted(*(side.records for side in sides))[0])))


def by_their_own(sides, step):
    """Returns the words for what differs where each run's own code computed a step again, or how to have it do so."""
    folders = [side.directory / 'spikes' for side in sides]
    both = sorted(int(file.stem) for file in folders[0].glob('*.json') if (folders[1] / file.name).exists())
    for known in both:
        found = [spikes.read(side.directory, known) for side in sides]
        if all(each['layers'] for each in found) and (words := spikes.unlike(*found)):
            return f'first difference, by the code of each, of the steps that both replayed: step {known}, {words}'
    return ("To see what each one's own code, versions and machine compute, replay a step there by `lm train ... "
            f'--replay={step}`, and run this again.')


def unexplained(one, other):
    """Returns the words for two runs on these meshes that computed again differ, though their settings do not."""
    if one == other:
        return 'Their settings are equal, so this machine does not compute the same twice.'
    return f'Their settings are equal; {one.size} and {other.size} devices add in another order, and round otherwise.'


def begin(pair, step):
    """Returns (start, states): the last step up to `step` at which both runs' states are known and equal, else 0."""
    *common, first = sorted(set(pair[0].starts(step)) & set(pair[1].starts(step)), reverse=True)
    for start in common:
        states = [past.restore(start) for past in pair]
        if not differing(*states):
            return start, states
    return first, [past.restore(first) for past in pair]


def explain(pair, before, after, step):
    """Returns the words for the first tensor in which a step of two runs differs that began with equal States."""
    batches = [past.batch(step) for past in pair]
    if differing(*batches):
        return f'the batch: {named(pair[0], batches)} {origins(pair, batches, step)}'
    grads = [past.gradient(state, batch) for past, state, batch in zip(pair, before, batches, strict=True)]
    kinds = {'gradient': grads, 'optimizer state': [state.optimizer for state in after],
             'parameter': [state.params for state in after]}
    for i, (kind, found) in enumerate(kinds.items()):
        if differing(*found):
            return f'{kind} {named(pair[0], found)} Equal before it: {", ".join(["batch", *kinds][:i + 1])}.'
    return 'its loss, though no tensor differs.'


def origins(pair, batches, step):
    """Returns the words for where the first row comes from that two batches do not share."""
    rows = [np.asarray(batch['inputs']) for batch in batches]
    row = next((row for row, (x, y) in enumerate(zip(*rows)) if not np.array_equal(x, y)), 0)
    found = [next(each for each in past.stream.passages(past.number(step)) if each.row == row) for past in pair]
    places = [f'token {each.start} of document {each.document} of {each.source}' for each in found]
    return f'Row {row} begins at {places[0]} in A, {places[1]} in B.'


def named(past, found):
    """Returns the words for the first leaf in which two trees differ, in the order that the model reads parameters."""
    order, stacked = replay.reading(past.settings, past.program)
    a, b = (trees.flatten(tree) for tree in found)
    places = []
    for name in differing(a, b):
        key = max((other for other in order if f'/{name}'.endswith(f'/{other}')), key=len, default=None)
        rank = order.index(key) if key else len(order)
        pair = jax.device_get((a.get(name), b.get(name)))
        if key in stacked and np.shape(pair[0]) == np.shape(pair[1]):
            layer = next(i for i, (x, y) in enumerate(zip(*pair, strict=True)) if x.tobytes() != y.tobytes())
            places.append((order.index(stacked[0]), layer, rank, f'{name}, layer {layer}', pair[0][layer],
                           pair[1][layer]))
        else:
            places.append((rank, 0, 0, name, *pair))
    *_, name, x, y = min(places, key=lambda each: each[:4])
    return f'{name}: {size(x, y)}'


def size(x, y):
    """Returns the words for how two arrays differ, of which one may be None."""
    if x is None or y is None or x.shape != y.shape:
        a, b = ('absent' if each is None else f'of shape {list(each.shape)}' for each in (x, y))
        return f'{a} in A, {b} in B.'
    unlike, x, y = x != y, np.asarray(x, np.float64), np.asarray(y, np.float64)
    return (f'{unlike.sum():,} of {unlike.size:,} values differ, by at most {np.max(np.abs(x - y)):.3g}; '
            f'the largest is {np.max(np.abs(x)):.3g}.')


def agreed(sides, off, start, first):
    """Says what it means that two runs computed again are equal up to the step at which their records differ."""
    print(f'computed here, both are equal up to step {first}: neither settings nor data make the difference, but the '
          'code, versions or machines they ran on.')
    for side in sides:
        if side.name in off:
            print(f'{side.name} does not come out as it was: {off[side.name]}.')
        else:
            known = sum(start < step <= first for step in side.records)
            print(f'{side.name} is computed again to the last bit, at all {known} steps on record from {start + 1} on.')
