"""Bisection of two runs that should be equal: the first step and tensor that differ, by computing both again."""
import jax
import numpy as np

from lm import config, records, trees
from lm.debug import layers, replay
from lm.debug.sides import divergence
from lm.parallel import sharding
from lm.train import checkpoint, spikes

checksums = jax.jit(trees.checksums)


def meshes(sides):
    """Returns the mesh that each of two runs was trained on, or for both that of one device where there are too few."""
    devices, counts = jax.devices(), [side.about['devices'] for side in sides]
    if max(counts) <= len(devices):
        return [sharding.make_mesh(side.settings.mesh, devices[:n]) for side, n in zip(sides, counts, strict=True)]
    print(f'this machine has {len(devices)} devices, not {max(counts)}: both runs are computed on one of them.')
    return [sharding.make_mesh({'data': 1}, devices[:1])] * 2


def trajectories(sides, cache):
    """Returns the replay.Trajectory of each run; the two share a program where they would compile the same one."""
    pair = [replay.Trajectory(side.directory, side.settings, cache, mesh)
            for side, mesh in zip(sides, meshes(sides), strict=True)]
    changed = config.diff(*(side.settings for side in sides))
    if pair[0].program.mesh == pair[1].program.mesh and all(records.free(key) and key != 'zero' for key in changed):
        pair[1].program = pair[0].program
    return pair


def checkpoint_difference(pair):
    """Returns the newest step saved by both runs if the states there differ, else None."""
    common = common_checkpoints(pair)
    if not common:
        print('checkpoints: no step was saved by both.')
        return None
    differ = differing(*([run.restore(common[-1]) for run in pair]))
    print(f'checkpoints: {"not " if differ else ""}equal at step {common[-1]}, the newest that both saved.')
    return common[-1] if differ else None


def common_checkpoints(pair):
    """Returns the steps, ascending, of which both runs have a checkpoint."""
    return sorted(set.intersection(*(set(checkpoint.steps(run.checkpoints)) for run in pair)))


def differing(a, b):
    """Returns the names of the leaves of two trees that are not equal bit for bit, or that only one of them has."""
    sums = [jax.device_get(checksums(trees.flatten(tree))) for tree in (a, b)]
    return [name for name in sums[0] | sums[1] if sums[0].get(name) != sums[1].get(name)]


def changed_data(side, run):
    """Returns the line that names the data that has changed since a run was trained, in a list, or an empty list."""
    try:
        run.check()
    except config.Error as error:
        return [f'first difference: the data. {side.name}: {error}']
    return []


def search(sides, pair, first):
    """Prints where two runs that differ at step `first` diverge, by computing both again."""
    changed = [line for side, run in zip(sides, pair, strict=True) for line in changed_data(side, run)]
    if changed:
        print('\n'.join(changed))
        return
    start, states = common_start(pair, first - 1)
    if differing(*states):
        params = [state.params for state in states]
        words = first_leaf(pair[0], params if differing(*params) else states)
        print(f'first difference: before step 1, the initial {words}')
        return
    print(f'computing both again from {f"checkpoint {start}" if start else "the start"} to step {first}.', flush=True)
    deviations = {}
    for step in range(start + 1, first + 1):
        kept = [trees.copy(state) for state in states]
        states, measured = zip(*(run.step(state, step) for run, state in zip(pair, states, strict=True)), strict=True)
        for side, values in zip(sides, measured, strict=True):
            known = side.records.get(step, values)
            name = next((name for name in replay.STABLE if known[name] != values[name]), None)
            if name:
                deviations.setdefault(side.name, f'{name} of step {step} is {values[name]} here and {known[name]} on '
                                                 'record')
        if differing(*states) or measured[0] != measured[1]:
            print(f'first difference: step {step}, {explain(pair, kept, states, step)}')
            if not any(config.diff(side.settings, sides[0].settings) for side in sides):
                print(unexplained(*(run.program.mesh for run in pair)))
            return
    report_agreement(sides, deviations, start, first)
    for saved in [saved for saved in common_checkpoints(pair) if saved > start]:
        params = [run.restore(saved).params for run in pair]
        if differing(*params):
            print(f'The first saved parameters that differ are of step {saved}, {first_leaf(pair[0], params)}')
            break
    print(by_own_replays(sides, max(start, 1, divergence(*(side.records for side in sides))[0])))


def by_own_replays(sides, step):
    """Returns the words for the first difference of the replays by each run's own code, or how to make them."""
    for replayed in sorted(set(spikes.steps(sides[0].directory)) & set(spikes.steps(sides[1].directory))):
        pair = [spikes.read(side.directory, replayed) for side in sides]
        if all(record['layers'] for record in pair) and (words := layers.first_difference(*pair)):
            return f'first difference, by the code of each, of the steps that both replayed: step {replayed}, {words}'
    return ("To see what each one's own code, versions and machine compute, run `lm replay` on each of the two there, "
            f'with --step={step}, and run this again.')


def unexplained(one, other):
    """Returns why two runs of equal settings on these meshes differ when computed again."""
    if one == other:
        return 'Their settings are equal, so this machine does not compute the same twice.'
    return f'Their settings are equal; {one.size} and {other.size} devices add in another order, and round otherwise.'


def common_start(pair, step):
    """Returns (start, states): the last step up to `step` at which both runs' states are known and equal, else 0."""
    *common, first = sorted(set(pair[0].starts(step)) & set(pair[1].starts(step)), reverse=True)
    for start in common:
        states = [run.restore(start) for run in pair]
        if not differing(*states):
            return start, states
    return first, [run.restore(first) for run in pair]


def explain(pair, before, after, step):
    """Returns the words for the first tensor in which a step of two runs differs that began with equal States."""
    batches = [run.batch(step) for run in pair]
    if differing(*batches):
        return f'the batch: {first_leaf(pair[0], batches)} {origins(pair, batches, step)}'
    grads = [run.gradient(state, batch) for run, state, batch in zip(pair, before, batches, strict=True)]
    kinds = {'gradient': grads, 'optimizer state': [state.optimizer for state in after],
             'parameter': [state.params for state in after]}
    for i, (kind, both) in enumerate(kinds.items()):
        if differing(*both):
            return f'{kind} {first_leaf(pair[0], both)} Equal before it: {", ".join(["batch", *kinds][:i + 1])}.'
    return 'its loss, though no tensor differs.'


def origins(pair, batches, step):
    """Returns the words for the documents of the first row in which two batches differ."""
    rows = [np.asarray(batch['inputs']) for batch in batches]
    row = next((row for row, (x, y) in enumerate(zip(*rows)) if not np.array_equal(x, y)), 0)
    passages = [next(p for p in run.stream.passages(run.number(step)) if p.row == row) for run in pair]
    places = [f'token {p.start} of document {p.document} of {p.source}' for p in passages]
    return f'Row {row} begins at {places[0]} in A, {places[1]} in B.'


def first_leaf(run, both):
    """Returns the words for the first leaf in which two trees differ, in the order that the model reads parameters."""
    order, stacked = layers.names_as_read(run.settings, run.program)
    a, b = (trees.flatten(tree) for tree in both)
    places = []
    for name in differing(a, b):
        key = max((other for other in order if f'/{name}'.endswith(f'/{other}')), key=len, default=None)
        rank = order.index(key) if key else len(order)
        pair = jax.device_get((a.get(name), b.get(name)))
        if key in stacked and np.shape(pair[0]) == np.shape(pair[1]):
            layer = next(i for i, (x, y) in enumerate(zip(*pair, strict=True)) if x.tobytes() != y.tobytes())
            first = order.index(layers.of_one_stack(key, stacked)[0])
            places.append((first, layer, rank, f'{name}, layer {layer}', pair[0][layer],
                           pair[1][layer]))
        else:
            places.append((rank, 0, 0, name, *pair))
    *_, name, x, y = min(places, key=lambda place: place[:4])
    return f'{name}: {difference(x, y)}'


def difference(x, y):
    """Returns the words for how two arrays differ, of which one may be None."""
    if x is None or y is None or x.shape != y.shape:
        a, b = ('absent' if value is None else f'of shape {list(value.shape)}' for value in (x, y))
        return f'{a} in A, {b} in B.'
    differ, x, y = x != y, np.asarray(x, np.float64), np.asarray(y, np.float64)
    return (f'{differ.sum():,} of {differ.size:,} values differ, by at most {np.max(np.abs(x - y)):.3g}; '
            f'the largest is {np.max(np.abs(x)):.3g}.')


def report_agreement(sides, deviations, start, first):
    """Prints what it means that two runs computed again are equal up to the step at which their records differ."""
    print(f'computed here, both are equal up to step {first}: neither settings nor data make the difference, but the '
          'code, versions or machines they ran on.')
    for side in sides:
        if side.name in deviations:
            print(f'{side.name} does not come out as it was: {deviations[side.name]}.')
        else:
            known = sum(start < step <= first for step in side.records)
            print(f'{side.name} is computed again bit for bit, at all {known} steps on record from {start + 1} on.')
