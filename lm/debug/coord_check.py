"""Coordinate check of muP: exponents of width of activations and of their change in training (Yang et al. 2022)."""
import html as markup
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, optim, train
from lm.config.overrides import with_traced_fields
from lm.models import mup
from lm.nn import Experts
from lm.pages import document, figures, tags
from lm.pages.text import columns

TAPS = ('embedding', 'attention', 'mlp', 'residual', 'logits')
ROWS = 8  # rows of the first batch whose activations are traced
LIMIT = 0.25  # largest deviation of an exponent of width from 0 that passes
INFINITE = 'is not finite'
HEAD = ('what', 'when', 'exponent of width', '')
PLOTS = {  # field of a Trace: (its first step that is plotted, title, caption)
    'size': (0, 'Mean |activation|', 'Flat lines keep their size.'),
    'change': (1, 'Mean |change| since the start', 'Flat lines learn at one pace at every width.'),
}


@dataclass(frozen=True)
class Trace:
    """Means of activations over tokens and layers at each width, seed and step: {tap: [widths seeds steps+1]}.

    size: the mean of |activation|. change: the mean of |activation - activation at the start|.
    """

    widths: tuple[int, ...]
    size: dict
    change: dict

    @property
    def steps(self):
        return next(iter(self.size.values())).shape[-1] - 1


@dataclass(frozen=True)
class Row:
    """The exponent of width of one tap's size or change, and its fault: 'grows', 'vanishes', ... or '' for none.

    sizes: the means over seeds at each width. spread: the standard deviation of the exponent over seeds.
    """

    tap: str
    when: str
    sizes: tuple
    exponent: float
    spread: float
    fault: str


def widened(settings, width):
    """Returns the settings with the model at `width`, the sizes that its base names scaled in proportion.

    Without a base, width and heads are scaled, and kv_heads and ff where they are set. Raises config.Error where a size
    would not be whole, or the model has no `activations`.
    """
    model = settings.model
    if not hasattr(model, 'activations'):
        raise config.Error(f'{type(model).__name__} has no activations to look at; try a Decoder.')
    attention = model.layers[0].attention
    sizes = model.base.sizes or {name: size for name, size in (
        ('width', model.width), ('heads', attention.heads), ('kv_heads', attention.kv_heads),
        *(('expert_ff' if isinstance(layer.mlp, Experts) else 'ff', layer.mlp.ff) for layer in model.layers)) if size}
    if 'width' not in sizes:
        raise config.Error(f'model.base={model.base} names no width; try model.base.width={model.width}.')
    step = sizes['width'] // math.gcd(*sizes.values())
    if width < 1 or width % step:
        near = max(1, round(width / step)) * step
        raise config.Error(f'at width={width} the sizes {sizes} are not whole in proportion; try width={near}.')
    scaled = {name: size * width // sizes['width'] for name, size in sizes.items()}
    return replace(settings, model=mup.resized(model, scaled))


def at_peak_rate(settings, steps):
    """Returns the settings for `steps` steps at the constant peak learning rate and without dropout."""
    return replace(settings, steps=steps, model=mup.without_dropout(settings.model),
                   optimizer=replace(settings.optimizer, schedule=optim.Constant()))


def measure(settings, widths, batches, seeds):
    """Returns the Trace of models at `widths`, each trained on batches {name: [steps B ...]} from `seeds` seeds."""
    names = {'inputs': 'tokens', 'segments': 'segments', 'positions': 'positions'}
    probe = {argument: batches[name][0, :ROWS] for name, argument in names.items() if name in batches}
    runs = []
    for width in widths:
        wide = widened(settings, width)
        runs.append(jax.jit(lambda seeds, wide=wide: jax.lax.map(
            lambda seed: _train(with_traced_fields(wide, {'seed': seed}), probe, batches), seeds))(jnp.arange(seeds)))
    size, change = ({tap: np.stack([np.asarray(run[field][tap]) for run in runs]) for tap in TAPS} for field in (0, 1))
    return Trace(tuple(widths), size, change)


def _train(settings, probe, batches):
    """Returns (size, change), each {tap: [steps+1]}, of the activations of one run on the inputs `probe`."""
    parts = train.parts(settings)

    def activations_of(params):
        activations = settings.model.activations(params, **probe)
        return {tap: activations[tap].astype(jnp.float32) for tap in TAPS}
    first = parts.init()
    start = activations_of(first.params)

    def means(params):
        now = activations_of(params)
        return ({tap: jnp.mean(jnp.abs(now[tap])) for tap in TAPS},
                {tap: jnp.mean(jnp.abs(now[tap] - start[tap])) for tap in TAPS})

    def advance(state, batch):
        state, _ = parts.step(state, batch)
        return state, means(state.params)
    _, later = jax.lax.scan(advance, first, batches)
    return jax.tree.map(lambda initial, rest: jnp.concatenate([initial[None], rest]), means(first.params), later)


def rows(trace):
    """Returns the Rows of a Trace: for every tap its size at the start and at the end, and its change at the end.

    Growth with width is a fault. So is a change that vanishes: wide models then learn nothing there.
    """
    after = f'after {trace.steps} step{"s" * (trace.steps > 1)}'
    return [row for tap in TAPS
            for row in (_row(trace, tap, 'size at the start', trace.size[tap][..., 0], -math.inf),
                        _row(trace, tap, f'size {after}', trace.size[tap][..., -1], -math.inf),
                        _row(trace, tap, f'change {after}', trace.change[tap][..., -1], -LIMIT))]


def _row(trace, tap, when, values, least):
    """Returns the Row of values [widths seeds] whose exponent passes between `least` and LIMIT."""
    with np.errstate(all='ignore'):
        logs = np.log2(values)
    if not np.isfinite(logs).all():
        fault = 'is zero' if np.isfinite(values).all() else INFINITE
        return Row(tap, when, tuple(values.mean(1)), math.nan, math.nan, fault)
    slopes = np.polyfit(np.log2(trace.widths), logs, 1)[0]
    exponent = float(np.polyfit(np.log2(trace.widths), np.log2(values.mean(1)), 1)[0])
    spread = float(np.std(slopes, ddof=1)) if len(slopes) > 1 else math.nan
    fault = 'grows' if exponent > LIMIT else 'vanishes' if exponent < least else ''
    return Row(tap, when, tuple(values.mean(1)), exponent, spread, fault)


def verdict(table, settings):
    """Returns (passed, message) of the Rows: whether none has a fault, and a sentence that names the worst fault."""
    faulty = [row for row in table if row.fault]
    if not faulty:
        return True, f'pass: nothing grows past width^{LIMIT} and no change vanishes past width^-{LIMIT}.'
    worst = max(faulty, key=lambda row: abs(row.exponent) if math.isfinite(row.exponent) else math.inf)
    message = f'fail: {worst.tap}, {worst.when}, {worst.fault}'
    model = settings.model
    message += f' as width^{worst.exponent:.2f}' if math.isfinite(worst.exponent) else ''
    if worst.fault == INFINITE:
        message += '; try a lower rate'
    elif not model.base.sizes:
        message += f'; try model.base.width={model.width} model.base.heads={model.layers[0].attention.heads}'
    return False, f'{message}.'


def as_text(trace, table):
    """Returns the Rows as a table in text, with a column of sizes for each width."""
    head = ('mean |activation|', '', *(f'width {width}' for width in trace.widths), 'exponent', '')
    return columns(head, [(row.tap, row.when, *(f'{size:.4g}' for size in row.sizes), _exponent(row), row.fault)
                          for row in table])


def _exponent(row):
    if not math.isfinite(row.exponent):
        return '-'
    return f'{row.exponent:+.2f}' + (f' ± {row.spread:.2f}' if math.isfinite(row.spread) else '')


def as_page(trace, table, title, message):
    """Returns the HTML page of a Trace, one self-contained file: the verdict's message, plots against width, the Rows.
    """
    plots = {name: {str(step): _plot(trace, name, step) for step in range(trace.steps, first - 1, -1)}
             for name, (first, _, _) in PLOTS.items()}
    sections = [tags.section(heading, figures.figure(name, {step: f'step {step}' for step in plots[name]},
                                                     f'{caption} Bands span all seeds.', log_y=True))
                for name, (_, heading, caption) in PLOTS.items()]
    cells = [(row.tap, row.when, _exponent(row), row.fault or 'as it should') for row in table]
    body = '\n'.join([f'<h1>{markup.escape(title)}</h1>', tags.paragraph(message, ''), *sections,
                      tags.section('Exponents', tags.table(HEAD, cells))])
    return document.render(title, body, plots)


def _plot(trace, name, step):
    """Returns the data of one plot: a field of the Trace at `step` against width, a line and a band for each tap."""
    series = [{'name': tap, **{line: figures.rounded(reduce(values[..., step], axis=1))
                               for line, reduce in (('mean', np.mean), ('low', np.min), ('high', np.max))}}
              for tap, values in getattr(trace, name).items()]
    return {'x': figures.rounded(np.array(trace.widths, float)), 'xname': 'width', 'yname': PLOTS[name][1],
            'series': series}


def parse_widths(text):
    """Returns the widths of a list such as '64,128', ascending; raises config.Error for fewer than two of them."""
    parts = [part.strip() for part in text.split(',')]
    if not all(part.isdigit() for part in parts) or len(set(parts)) < 2:
        raise config.Error(f'--widths={text} is no list of two widths or more; try --widths=64,128,256,512.')
    return tuple(sorted({int(part) for part in parts}))
