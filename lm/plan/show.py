"""`lm plan`: a plan as a page of text or as JSON."""
import functools
import json
import shlex
import sys
import time

from lm import config, hardware
from lm.plan import plans
from lm.plan.search import enough, ranked

GIB = 2 ** 30


def cluster_of(on):
    if not on:
        raise config.Error(f'name the hardware: --on v5e-256 or --on 8xh100; chips are {", ".join(hardware.CHIPS)}.')
    return hardware.cluster(on)


def dumped(found):
    return json.dumps(found, indent=1)


def searched(loaded, cluster, check, price, as_json):
    say = functools.partial(print, flush=True, file=sys.stderr if as_json else sys.stdout)
    settings, begun = loaded.config, time.perf_counter()
    found = ranked(settings, cluster)
    if not found:
        raise config.Error(f'no mesh of {cluster.devices} devices divides {settings.data.batch} rows; '
                           f'try data.batch={cluster.devices}.')
    say(f'{len(found)} layouts ranked by formula in {time.perf_counter() - begun:.1f} s')

    def compiled(candidate):
        say(f'compiling {_named(candidate)}; formula: {candidate.peak / GIB:.2f} GiB, predicted '
            f'{candidate.seconds:.3f} s a step')
        return plans.outcome(candidate.layout.of(settings), cluster, loaded.file, price)
    chosen, outcome = plans.best(found, cluster, compiled, check)
    if as_json:
        print(dumped({'layouts': len(found), 'best': chosen and chosen.layout.lines(), 'plan': outcome}))
    elif chosen:
        print(text(outcome), '\nThe best that fits; write into the experiment, in its model and in train.Config:\n')
        print(*(f'    {line}' for line in chosen.layout.lines()), sep='\n')
    else:
        print(_none(found, settings, cluster, outcome))
    return 0 if chosen else 1


def _named(candidate):
    return ' '.join(candidate.layout.lines()).rstrip(',')


def _none(found, settings, cluster, outcome):
    """Returns in words why no Candidate fits: by formula, or by the last of those that were compiled."""
    least, has = min(found, key=lambda c: c.peak), cluster.chip.memory
    off = plans.excess(outcome) if outcome else 1.0
    more = enough(settings, cluster, off)
    remedy = f'{more} is enough by formula.' if more else 'take chips with more memory.'
    if off * least.peak > has:
        return (f'None fits {cluster.name}: the least takes {_over(off * least.peak, has, cluster.chip.name)}, with '
                f'{_named(least)}; {remedy}')
    return (f'None that was compiled fits {cluster.name}: the last takes '
            f'{_over(outcome["peak"], has, cluster.chip.name)}; a larger --check compiles more, and {remedy}')


def _over(peak, capacity, chip):
    return f'{peak / GIB:.2f} GiB a device, {(peak - capacity) / GIB:.2f} more than the {capacity / GIB:.2f} of {chip}'


def text(found):
    """Returns a plan as lines of text."""
    lines = [f'{found["on"]}: {found["chips"]} chips, mesh {found["mesh"]}, compiled in {found["compile_seconds"]} s'
             f'{", some time ago" if found["cached"] else ""}', '', 'Memory of a device, GiB']
    rows = [('parameters', found['parameters']), ('optimizer', found['optimizer'])]
    if 'temporaries' in found:
        rows += [('batch and the rest', found['arguments'] - found['parameters'] - found['optimizer']),
                 ('activations and other temporaries', found['temporaries'])]
    rows += [('peak', found['peak']), ('capacity', found['capacity']), ('by formula', found['formula'])]
    lines += [f'  {name:<36}{size / GIB:9.3f}' for name, size in rows if size >= 0]
    if found['involuntary']:
        lines.append(f'warning: the partitioner rebuilds {found["involuntary"]} whole arrays.')
    if 'prediction' in found:
        lines += ['', *_work(found), '', *_time(found['prediction'])]
    if not found['fits']:
        lines += ['', *_misfit(found)]
    return '\n'.join(lines)


def _work(found):
    lines = ['Work of a device in one step', f'  {"TFLOPs":<36}{found["flops"] / 1e12:9.2f}',
             f'  {"GB through memory":<36}{found["memory_bytes"] / 1e9:9.2f}']
    return lines + [f'  {f"GB sent, {what}":<36}{sent / 1e9:9.2f}' for what, sent in found['collectives'].items()]


def _time(said):
    parts = ', '.join(f'{name} {seconds:.3f}' for name, seconds in said['parts'].items())
    least, most = said['least'], said['most']
    rows = [('step, s', 'step_seconds', '.3f'), ('tokens/s', 'tokens_per_second', ',.0f'), ('MFU', 'mfu', '.3f'),
            (f'hours to {said["tokens"] / 1e9:.1f}B tokens', 'hours', ',.1f')]
    rows += [(f'dollars at {said["price"]:.2f} a chip-hour', 'dollars', ',.0f')] if said['price'] else []
    head = f'{"Prediction":<38}{"all overlaps":>14}{"no collective does":>20}'
    note = f'List prices of {hardware.PRICED}, on demand; --price sets your own.'
    return [f'Bound by {said["bound"]}; predicted seconds: {parts}', head,
            *(f'  {name:<36}{format(least[key], shape):>14}{format(most[key], shape):>20}'
              for name, key, shape in rows), *([note] if said['listed'] else [])]


def _misfit(found):
    lines = [f'DOES NOT FIT: it takes {_over(found["peak"], found["capacity"], found["chip"])}.']
    if not found['remedies']:
        more = f'{found["enough"]} is enough' if found['enough'] else 'take chips with more memory'
        return [*lines, f'By formula no mesh, rematerialisation or number of micro-batches makes it fit; {more}.']
    return [*lines, 'By formula these would, the fewest changes first:', *(
        f'  {shlex.join(each["changes"])}: {each["peak"] / GIB:.2f} GiB, predicted {each["seconds"]:.3f} s a step'
        for each in found['remedies'])]
