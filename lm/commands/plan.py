"""`lm plan`: what an experiment takes on hardware that is not here."""
import functools
import math
import sys
import time
from json import dumps

from lm import config, hardware
from lm.plan import calibration, planner, published, search
from lm.plan.text import GIB, as_text, larger_cluster, over_capacity
from lm.train import Config

ACCELERATORS = False  # compiles for them, and must not take those that are here


def main(*experiment: str, on: str = '', search: bool = False, check: int = 3, price: float = 0.0, against: str = '',
         json: bool = False):
    """Plans an experiment for hardware that is not here: whether it fits, how fast it is, and what it costs.

    The real step is compiled by the real compiler. Every time is a prediction, from the compiled program, the data
    sheet, and what published runs, or `lm bench` on that chip, reached of it; docs/planning.md has the errors.

    Args:
        experiment: the experiment file, and values to set, e.g. mesh.fsdp=256 model.execution.remat=full
        on: the hardware: v5e-256, v5p-512, 2xv6e-256, 8xh100, ...
        search: rank all meshes, rematerialisations and micro-batches by formula, and compile the best few
        check: how many of those are compiled at most
        price: dollars for an hour of one chip; 0 for the list price
        against: instead, a JSON table of measured steps, to print predictions beside; nothing is compiled
        json: print JSON
    """
    if check < 1 or not 0 <= price < math.inf:
        raise config.Error(f'--check={check} compiles nothing; try --check=1.' if check < 1 else
                           f'--price={price} is no price; try --price=2.5, in dollars for an hour of a chip.')
    unread = {'--on': on, '--search': search, '--price': price} if against else {}
    unread |= {} if search and not against else {'--check': check != main.__kwdefaults__['check']}
    for option in (name for name, value in unread.items() if value):
        raise config.Error(f'--against reads a table, in which {option} changes nothing; leave that out.' if against
                           else f'{option} changes nothing without --search; add that, or leave this out.')
    if against:
        return _against(against, experiment, json)
    if not experiment:
        raise config.Error('no experiment is named; try lm plan experiments/gpt2_124m.py --on=v5e-8.')
    if not on:
        raise config.Error(f'no hardware is named; try --on=v5e-256 or --on=8xh100, of {", ".join(hardware.CHIPS)}.')
    cluster, loaded = calibration.calibrated(hardware.cluster(on)), config.load(experiment[0], experiment[1:], Config)
    if search:
        return _search(loaded, cluster, check, price, json)
    plan = planner.make_plan(loaded.config, cluster, loaded.file, price)
    print(dumps(plan, indent=1) if json else as_text(plan))
    return 0 if plan['fits'] else 1


def _against(path, experiment, as_json):
    """Prints predictions beside the measured steps of a table; returns the exit code."""
    if experiment:
        raise config.Error(f'--against plans the rows of {path}, not {experiment[0]}; leave one of the two away.')
    comparison = published.compare(path)
    print(dumps(comparison, indent=1) if as_json else published.as_text(comparison))
    return 1 if comparison['refused'] else 0


def _search(loaded, cluster, check, price, as_json):
    """Prints the fastest layout that fits, and its plan; returns the exit code."""
    progress = functools.partial(print, flush=True, file=sys.stderr if as_json else sys.stdout)
    settings, begun = loaded.config, time.perf_counter()
    candidates = search.ranked(settings, cluster)
    if not candidates:
        raise config.Error(f'no mesh of {cluster.devices} devices divides {settings.data.batch} rows; '
                           f'try data.batch={cluster.devices}.')
    progress(f'{len(candidates)} layouts ranked by formula in {time.perf_counter() - begun:.1f} s')

    def plan_of(candidate):
        progress(f'compiling {_one_line(candidate)}; by formula {candidate.peak / GIB:.2f} GiB, '
                 f'{candidate.seconds:.3f} s a step')
        return planner.compiled_plan(candidate.layout.applied_to(settings), cluster, loaded.file, price)
    best, plan = planner.first_that_fits(candidates, cluster, plan_of, check)
    if as_json:
        print(dumps({'layouts': len(candidates), 'best': best and best.layout.lines(), 'plan': plan}, indent=1))
    elif best:
        print(f'{as_text(plan)}\n\nThe best that fits; write into the experiment, in its model and in train.Config:\n')
        print(*(f'    {line}' for line in best.layout.lines()), sep='\n')
    else:
        print(_none_fits(candidates, settings, cluster, plan))
    return 0 if best else 1


def _one_line(candidate):
    return ' '.join(candidate.layout.lines()).rstrip(',')


def _none_fits(candidates, settings, cluster, plan):
    """Returns in words why no Candidate fits: by formula, or by the last of those that were compiled."""
    least, capacity = min(candidates, key=lambda c: c.peak), cluster.chip.memory
    scale = planner.calibration(plan) if plan else 1.0
    remedy = larger_cluster(search.smallest_cluster(settings, cluster, scale))
    if scale * least.peak > capacity:
        excess = over_capacity(scale * least.peak, capacity, cluster.chip.name)
        return f'None fits {cluster.name}: the least takes {excess}, with {_one_line(least)}; {remedy}'
    excess = over_capacity(plan['peak'], capacity, cluster.chip.name)
    return (f'None that was compiled fits {cluster.name}: the last takes {excess}; a larger --check compiles more, '
            f'and {remedy}')
