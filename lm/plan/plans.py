"""A plan: what the compiler says of an experiment on a cluster, and what follows from the data sheet."""
import jax

from lm.models import flops
from lm.plan import analytic, compiled, costs, layouts, roofline, search


def plan(settings, cluster, file=None, price=0.0):
    """Returns the `outcome` of a train.Config on a cluster and, where it does not fit, what would make it fit."""
    found = outcome(settings, cluster, file, price)
    if not found['fits']:
        layout, off = layouts.given(settings, cluster.devices), excess(found)
        found['remedies'] = [{'changes': c.layout.changes(layout), 'peak': off * c.peak, 'seconds': c.seconds}
                             for c in search.remedies(settings, cluster, off)]
        found['enough'] = '' if found['remedies'] else search.enough(settings, cluster, off)
    return found


def outcome(settings, cluster, file=None, price=0.0):
    """Returns what the compiler says of a train.Config on a cluster as JSON-able values, in bytes, of one device.

    `price` is in dollars for an hour of a chip, 0 for the list price. Seconds are predictions: 'least' if all overlaps,
    'most' if no collective does. Raises config.Error where the experiment does not divide over the cluster.
    """
    layout = layouts.given(settings, cluster.devices)
    made = compiled.compile_step(settings, cluster, file)
    held = analytic.memory(layout, analytic.subject(settings), cluster.chip.platform)
    found = {'on': cluster.name, 'chip': cluster.chip.name, 'chips': cluster.chips, 'devices': cluster.devices,
             'mesh': layout.sizes, 'compile_seconds': round(made.seconds, 1), 'cached': made.cached,
             'capacity': cluster.chip.memory, 'parameters': held['parameters'], 'optimizer': held['optimizer'],
             'formula': sum(held.values()), **made.memory, 'peak': made.peak,
             'fits': made.peak <= cluster.chip.memory and not made.needed, 'involuntary': made.warnings}
    if made.text:
        measured = costs.measure(made.text, layout.sizes, analytic.seen_share(settings))
        found |= {'flops': measured['flops'], 'memory_bytes': measured['memory_bytes'],
                  'collectives': {f'{kind} {axes}': sent for (kind, axes), sent in measured['collectives'].items()},
                  'prediction': predict(settings, cluster, layout, measured, price or cluster.chip.price)}
    return found


def excess(found):
    """Returns how many times more memory the compiler takes than the formulas say, 1 where it takes less."""
    return max(1, found['peak'] / found['formula'])


def predict(settings, cluster, layout, measured, price):
    """Returns the predicted times, rates and costs of a run whose step does what `measured` says."""
    roof = roofline.roofline(cluster, layout.sizes, settings.model.dtype, measured)
    tokens = settings.data.batch * settings.data.context
    peak = cluster.devices * cluster.chip.flops[settings.model.dtype]
    shapes = jax.eval_shape(settings.model.init, jax.random.key(0))
    useful = tokens * flops.flops_per_token(settings.model, shapes, settings.data.context)

    def run(seconds):
        hours = seconds * settings.steps / 3600
        return {'step_seconds': seconds, 'tokens_per_second': tokens / seconds, 'mfu': useful / seconds / peak,
                'hours': hours, 'dollars': hours * cluster.chips * price}
    return {'parts': roof.parts, 'bound': roof.bound, 'least': run(roof.least), 'most': run(roof.most),
            'tokens': tokens * settings.steps, 'price': price, 'listed': price == cluster.chip.price}


def best(candidates, cluster, compiled, check):
    """Returns (Candidate, outcome) of the first of ranked Candidates that the compiler says fits.

    (None, the last outcome) where none does. `compiled` returns the outcome of a Candidate, and is asked of `check` at
    most. One that does not fit tells how much more than the formulas the compiler takes, which then holds for all.
    """
    off, tried, found = 1.0, 0, None
    for candidate in _different(candidates):
        if tried < check and off * candidate.peak <= cluster.chip.memory:
            found, tried = compiled(candidate), tried + 1
            if found['fits']:
                return candidate, found
            off = max(off, excess(found))
    return None, found


def _different(candidates):
    """Yields the Candidates without those that another one of the same mesh and rematerialisation leads."""
    seen = set()
    for candidate in candidates:
        key = tuple(candidate.layout.sizes.items()), candidate.layout.remat
        if key not in seen:
            seen.add(key)
            yield candidate
