"""A plan: what the compiler says of an experiment on a cluster, and what follows from the data sheet."""
import jax

from lm import bench, config
from lm.plan import analytic, compiled, costs, layouts, roofline, search


def plan(settings, cluster, file=None, price=0.0):
    """Returns the plan of a train.Config on a cluster as JSON-able values, in bytes and seconds, of one device.

    `price` is in dollars for an hour of a chip, 0 for the list price. Times are predictions: 'least' if all overlaps,
    'most' if no collective does. Raises config.Error where the experiment does not divide over the cluster.
    """
    layout = layouts.given(settings, cluster.devices)
    made = compiled.compile_step(settings, cluster, file)
    subject = analytic.subject(settings)
    held = analytic.memory(layout, subject, cluster.chip.platform)
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
    if not found['fits']:
        off = max(1, made.peak / found['formula'])
        found['remedies'] = [{'changes': c.layout.changes(layout), 'peak': off * c.peak, 'seconds': c.seconds}
                             for c in search.remedies(settings, cluster, off)]
        found['enough'] = '' if found['remedies'] else search.enough(settings, cluster, off)
    return found


def predict(settings, cluster, layout, measured, price):
    """Returns the predicted times, rates and costs of a run whose step does what `measured` says."""
    roof = roofline.roofline(cluster, layout.sizes, settings.model.dtype, measured)
    tokens = settings.data.batch * settings.data.context
    peak = cluster.devices * cluster.chip.flops[settings.model.dtype]
    shapes = jax.eval_shape(settings.model.init, jax.random.key(0))
    useful = tokens * bench.flops_per_token(settings.model, shapes, settings.data.context)

    def run(seconds):
        hours = seconds * settings.steps / 3600
        return {'step_seconds': seconds, 'tokens_per_second': tokens / seconds, 'mfu': useful / seconds / peak,
                'hours': hours, 'dollars': hours * cluster.chips * price}
    return {'parts': roof.parts, 'bound': roof.bound, 'least': run(roof.least), 'most': run(roof.most),
            'tokens': tokens * settings.steps, 'price': price}


def best(settings, cluster, file, check, report):
    """Returns (the Candidates by rank, the settings of the first that the compiler says fits or None, their plan).

    At most `check` are compiled; `report` is called with the Candidate before each.
    """
    found = search.ranked(settings, cluster)
    if not found:
        raise config.Error(f'no mesh of {cluster.devices} devices divides {settings.data.batch} rows; '
                           f'try data.batch={cluster.devices}.')
    for candidate in _different(found, cluster)[:check]:
        report(candidate)
        tried = candidate.layout.of(settings)
        outcome = plan(tried, cluster, file)
        if outcome['fits']:
            return found, candidate, outcome
    return found, None, None


def _different(found, cluster):
    """Returns the Candidates that fit, without those that another one of the same mesh and rematerialisation leads."""
    kept, seen = [], set()
    for candidate in found:
        key = tuple(candidate.layout.sizes.items()), candidate.layout.remat
        if candidate.peak <= search.MARGIN * cluster.chip.memory and key not in seen:
            seen.add(key)
            kept.append(candidate)
    return kept
