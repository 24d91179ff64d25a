"""`lm plan`: a plan as a page of text or as JSON."""
import json
import time

from lm import config, hardware
from lm.plan import plans
from lm.plan.search import enough, ranked

GIB = 2 ** 30


def main(experiment: str, *overrides: str, on: str = '', search: bool = False, check: int = 3, price: float = 0.0,
         json: bool = False):
    """Plans an experiment for hardware that is not here: does it fit, how fast and how dear can it be.

    The real step is compiled by the real compiler. Every time is a prediction, from the compiled program and the data
    sheet: between all parts overlapping and no collective doing so.

    Args:
        experiment: the experiment file
        overrides: values to set, e.g. mesh.fsdp=256 model.remat=full
        on: the hardware: v5e-256, v5p-512, 2xv6e-256, 8xh100, ...
        search: rank all meshes, rematerialisations and micro-batches, and compile the best few
        check: how many of those at most are compiled
        price: dollars for an hour of one chip, in place of the list price
        json: print JSON
    """
    if not on:
        raise config.Error(f'name the hardware: --on v5e-256 or --on 8xh100; chips are {", ".join(hardware.CHIPS)}.')
    cluster, loaded = hardware.cluster(on), config.load(experiment, overrides)
    settings = loaded.config
    if search:
        return _search(settings, cluster, loaded.file, check, json)
    found = plans.plan(settings, cluster, loaded.file, price)
    print(_dumped(found) if json else text(found))
    return 0 if found['fits'] else 1


def _dumped(found):
    return json.dumps(found, indent=1)


def _search(settings, cluster, file, check, as_json):
    begun = time.perf_counter()
    count = len(ranked(settings, cluster))
    if not as_json:
        print(f'{count} layouts ranked by formula in {time.perf_counter() - begun:.1f} s')

    def report(candidate):
        if not as_json:
            print(f'compiling {", ".join(candidate.layout.lines())}  formula: {candidate.peak / GIB:.2f} GiB, '
                  f'{candidate.seconds:.2f} s a step', flush=True)
    found, chosen, outcome = plans.best(settings, cluster, file, check, report)
    if as_json:
        print(_dumped({'layouts': count, 'best': chosen and chosen.layout.lines(), 'plan': outcome}))
    elif chosen:
        print(text(outcome), '\nThe best that fits; write into the experiment:\n')
        print(*(f'    {line}' for line in chosen.layout.lines()), sep='\n')
    else:
        least = min(found, key=lambda c: c.peak)
        print(f'None fits {cluster.name}: the least is {least.peak / GIB:.1f} GiB a device of '
              f'{cluster.chip.memory / GIB:.1f} with {", ".join(least.layout.lines())}; '
              f'{enough(settings, cluster) or "chips with more memory"} would do.')
    return 0 if chosen else 1


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
    return [f'Bound by {said["bound"]}; seconds: {parts}', head,
            *(f'  {name:<36}{format(least[key], shape):>14}{format(most[key], shape):>20}'
              for name, key, shape in rows),
            f'List prices of {hardware.PRICED}, on demand; --price sets your own.']


def _misfit(found):
    over = found['peak'] - found['capacity']
    lines = [f'DOES NOT FIT: {over / GIB:.2f} GiB too much for the {found["capacity"] / GIB:.2f} GiB of a '
             f'{found["chip"]}.']
    if not found['remedies']:
        more = f'{found["enough"]} is enough' if found['enough'] else 'take chips with more memory'
        return [*lines, f'By formula no mesh, rematerialisation or number of micro-batches makes it fit; {more}.']
    return [*lines, 'By formula these would, the fewest changes first:', *(
        f'  {" ".join(each["changes"])}: {each["peak"] / GIB:.2f} GiB, {each["seconds"]:.2f} s a step'
        for each in found['remedies'])]
