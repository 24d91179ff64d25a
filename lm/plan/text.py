"""A plan as text, as `lm plan` prints it."""
import shlex

from lm import hardware

GIB = 2 ** 30
SOURCES = {True: 'measured by lm bench', False: 'fitted to published runs'}


def as_text(plan):
    """Returns a plan as lines of text."""
    lines = [f'{plan["on"]}: {plan["chips"]} chips, mesh {plan["mesh"]}, compiled in {plan["compile_seconds"]} s'
             f'{" (cached)" if plan["cached"] else ""}', '', 'Memory of a device, GiB']
    rows = [('parameters', plan['parameters']), ('optimizer state', plan['optimizer'])]
    if 'temporaries' in plan:
        rows += [('batch and other arguments', plan['arguments'] - plan['parameters'] - plan['optimizer']),
                 ('activations and other temporaries', plan['temporaries'])]
    rows += [('peak', plan['peak']), ('capacity', plan['capacity']), ('peak by formula', plan['formula'])]
    lines += [f'  {name:<36}{size / GIB:9.3f}' for name, size in rows if size >= 0]
    if plan['involuntary']:
        lines.append(f'warning: {plan["involuntary"]} involuntary full rematerialisations: the partitioner gathers as '
                     'many whole arrays.')
    if 'prediction' in plan:
        lines += ['', *_work(plan), '', *_times(plan['prediction'])]
    if not plan['fits']:
        lines += ['', *_misfit(plan)]
    return '\n'.join(lines)


def _work(plan):
    lines = ['Work of a device in one step', f'  {"TFLOPs":<36}{plan["flops"] / 1e12:9.2f}',
             f'  {"HBM traffic, GB":<36}{plan["memory_bytes"] / 1e9:9.2f}']
    return lines + [f'  {f"{collective} sent, GB":<36}{sent / 1e9:9.2f}'
                    for collective, sent in plan['collectives'].items()]


def _times(prediction):
    about, low, high, floor = (prediction[name] for name in ('about', 'low', 'high', 'floor'))
    parts = ', '.join(f'{name} {seconds:.3f}' for name, seconds in prediction['parts'].items() if seconds)
    rows = [('step, s', 'step_seconds', '.3f'), ('tokens/s', 'tokens_per_second', ',.0f'), ('MFU', 'mfu', '.3f'),
            (f'hours to {prediction["tokens"] / 1e9:.1f}B tokens', 'hours', ',.1f')]
    if prediction['price']:
        rows.append((f'dollars at {prediction["price"]:.2f} a chip-hour', 'dollars', ',.0f'))
    seconds = [run['step_seconds'] for run in (about, low, high, floor)]
    lines = ['Prediction: a step takes about {:.3f} s ({:.3f} to {:.3f} s); its floor is {:.3f} s.'.format(*seconds),
             f'Seconds that its parts add: {parts}; most by {prediction["bound"]}.',
             f'{"":<38}{"about":>14}{"range":>25}{"floor":>14}']
    for name, key, form in rows:
        span = f'{format(low[key], form)} - {format(high[key], form)}'
        lines.append(f'  {name:<36}{format(about[key], form):>14}{span:>25}{format(floor[key], form):>14}')
    lines.append(f'Products reach {prediction["efficiency"]:.0%} of the peak, {SOURCES[prediction["measured"]]}. '
                 'The floor: all parts at once, at the rates of the data sheet.')
    if prediction['listed']:
        lines.append(f'On-demand list prices of {hardware.PRICED}; --price=DOLLARS sets your own.')
    return lines


def _misfit(plan):
    lines = [f'DOES NOT FIT: it takes {over_capacity(plan["peak"], plan["capacity"], plan["chip"])}.']
    if not plan['remedies']:
        return [*lines, 'By formula no mesh, rematerialisation or number of micro-batches makes it fit; '
                        f'{larger_cluster(plan["enough"])}']
    return [*lines, 'By formula these changes make it fit, the fewest first:', *(
        f'  {shlex.join(remedy["changes"])}: {remedy["peak"] / GIB:.2f} GiB, predicted {remedy["seconds"]:.3f} s a step'
        for remedy in plan['remedies'])]


def over_capacity(peak, capacity, chip):
    """Returns how much more than the capacity of a chip a peak is, in words; both in bytes."""
    return f'{peak / GIB:.2f} GiB a device, {(peak - capacity) / GIB:.2f} more than the {capacity / GIB:.2f} of {chip}'


def larger_cluster(name):
    """Returns the remedy for what fits in no layout: a cluster by name, or chips with more memory where name is ''."""
    return f'{name} is enough by formula.' if name else 'take chips with more memory.'
