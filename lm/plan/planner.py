"""A plan, as JSON-able values: the compiler's account of a step on a cluster, and what the data sheet makes of it."""

from lm.plan import analytic, compiler, costs, roofline, search
from lm.plan.layout import layout_of
from lm.plan.shape import shape_of


def make_plan(settings, cluster, file=None, price=0.0):
    """Returns the plan of a train.Config on a cluster and, where it does not fit, what would make it fit."""
    plan = compiled_plan(settings, cluster, file, price)
    if not plan['fits']:
        own, scale = layout_of(settings, cluster.devices), calibration(plan)
        plan['remedies'] = [{'changes': c.layout.changes(own), 'peak': scale * c.peak, 'seconds': c.seconds}
                            for c in search.remedies(settings, cluster, scale)]
        plan['enough'] = '' if plan['remedies'] else search.smallest_cluster(settings, cluster, scale)
    return plan


def compiled_plan(settings, cluster, file=None, price=0.0):
    """Returns the plan of one train.Config on a cluster: JSON-able values, in bytes and FLOPs of one device.

    `price` is in dollars for an hour of a chip, 0 for the list price. Times are predictions: 'about', between 'low' and
    'high' in most published runs, and never below 'floor', at the rates of the data sheet. Raises config.Error where
    the experiment does not divide over the cluster.
    """
    layout = layout_of(settings, cluster.devices)
    step = compiler.compile_step(settings, cluster, file)
    memory = analytic.peak_memory(layout, analytic.workload_of(settings))
    plan = {'on': cluster.name, 'chip': cluster.chip.name, 'chips': cluster.chips, 'devices': cluster.devices,
            'mesh': layout.mesh, 'compile_seconds': round(step.seconds, 1), 'cached': step.cached,
            'capacity': cluster.chip.memory, 'parameters': memory['parameters'], 'optimizer': memory['optimizer'],
            'formula': sum(memory.values()), **step.memory, 'peak': step.peak,
            'fits': step.peak <= cluster.chip.memory and not step.needed, 'involuntary': step.warnings}
    if step.text:
        attended = shape_of(settings.model).attended(settings.data.context)
        cost = costs.measure(step.text, layout.mesh, attended)
        plan |= {'flops': cost['flops'], 'memory_bytes': cost['hbm_bytes'],
                 'collectives': {f'{kind} {axes}': sent for (kind, axes), sent in cost['collectives'].items()},
                 'prediction': prediction(settings, cluster, layout, cost, price or cluster.chip.price)}
    return plan


def calibration(plan):
    """Returns the compiler's peak memory as a multiple of the formulas', at least 1."""
    return max(1, plan['peak'] / plan['formula'])


def prediction(settings, cluster, layout, cost, price):
    """Returns the predicted times, rates and dollars of a run whose step costs what costs.measure returned."""
    dtype, tokens = shape_of(settings.model).dtype, settings.data.batch * settings.data.context
    roof = roofline.roofline(cluster, layout.mesh, dtype, cost)
    peak_flops = cluster.devices * cluster.chip.flops[dtype]
    model_flops = tokens * settings.model.flops(settings.data.context)

    def run(seconds):
        hours = seconds * settings.steps / 3600
        return {'step_seconds': seconds, 'tokens_per_second': tokens / seconds,
                'mfu': model_flops / seconds / peak_flops, 'hours': hours, 'dollars': hours * cluster.chips * price}
    low, high = roof.range
    return {'parts': roof.parts, 'bound': roof.bound, 'about': run(roof.seconds), 'low': run(low), 'high': run(high),
            'floor': run(roof.floor), 'efficiency': cluster.chip.efficiency, 'measured': cluster.chip.measured,
            'tokens': tokens * settings.steps, 'price': price, 'listed': price == cluster.chip.price}


def first_that_fits(candidates, cluster, plan_of, check):
    """Returns (Candidate, plan) of the first of ranked Candidates that fits by the compiler; (None, last plan) if none.

    `plan_of` compiles a Candidate; at most `check` are compiled, the first of each mesh and rematerialisation. A step
    that does not fit gives a calibration, of which the largest holds for all that follow.
    """
    scale, compiled, plan, seen = 1.0, 0, None, set()
    for candidate in candidates:
        key = tuple(candidate.layout.mesh.items()), candidate.layout.remat
        if compiled < check and key not in seen and scale * candidate.peak <= cluster.chip.memory:
            plan, compiled = plan_of(candidate), compiled + 1
            if plan['fits']:
                return candidate, plan
            scale = max(scale, calibration(plan))
        seen.add(key)
    return None, plan
