"""Whether what flows through a model keeps its size as the model widens; and `lm coord-check`."""
import html as markup
import math
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, optim, train
from lm.models import mup
from lm.nn import Experts
from lm.pages import document, figures, tags
from lm.pages.text import columns

TAPS = ('embedding', 'attention', 'mlp', 'residual', 'logits')
ROWS = 8  # of a batch, on which activations are looked at
LIMIT = 0.25  # how far an exponent of width may be from 0
INFINITE = 'is not finite'
HEAD = ('what', 'when', 'exponent of width', '')
DRAWN = {  # what of a Trace: the first step that has any, what it is, and how to read it
    'size': (0, 'Mean |activation|', 'Flat lines keep their size.'),
    'change': (1, 'Mean |change| since the start', 'Flat lines learn at one pace at every width.'),
}


@dataclass(frozen=True)
class Trace:
    """Means over tokens and layers at each width, step and seed: {tap: [widths seeds steps+1]}.

    size: of |activation|. change: of |activation now - activation at the start|.
    """

    widths: tuple[int, ...]
    size: dict
    change: dict

    @property
    def steps(self):
        return next(iter(self.size.values())).shape[-1] - 1


@dataclass(frozen=True)
class Row:
    """The power of the width that something follows, its deviation over seeds, and what is wrong with it, if anything.

    `sizes` are the means over seeds at each width.
    """

    tap: str
    when: str
    sizes: tuple
    exponent: float
    spread: float
    fault: str


def widened(settings, width):
    """Returns the settings with the model at a width; what its base names grows in proportion.

    Without a base the heads grow too, and what else is given of kv_heads and ff. Raises config.Error where a size would
    not be whole, or the model shows no activations.
    """
    model = settings.model
    if not hasattr(model, 'activations'):
        raise config.Error(f'{type(model).__name__} has no activations to look at; try a Decoder.')
    attention, mlp = model.layers[0].attention, model.layers[0].mlp
    sizes = model.base.sizes or {name: size for name, size in (
        ('width', model.width), ('heads', attention.heads), ('kv_heads', attention.kv_heads),
        ('expert_ff' if isinstance(mlp, Experts) else 'ff', mlp.ff)) if size}
    if 'width' not in sizes:
        raise config.Error(f'model.base={model.base} names no width; try model.base.width={model.width}.')
    step = sizes['width'] // math.gcd(*sizes.values())
    if width < 1 or width % step:
        near = max(1, round(width / step)) * step
        raise config.Error(f'at width={width} the sizes {sizes} are not whole in proportion; try width={near}.')
    grown = {name: size * width // sizes['width'] for name, size in sizes.items()}
    return replace(settings, model=mup.resized(model, grown))


def still(settings, steps):
    """Returns the settings for `steps` steps at the peak rate and without dropout."""
    return replace(settings, steps=steps, model=mup.without_dropout(settings.model),
                   optimizer=replace(settings.optimizer, schedule=optim.Constant()))


def trace(settings, widths, batches, seeds):
    """Returns the Trace of models at `widths`, each trained on batches {name: [steps B ...]} from `seeds` seeds."""
    names = {'inputs': 'tokens', 'segments': 'segments', 'positions': 'positions'}
    probe = {given: batches[name][0, :ROWS] for name, given in names.items() if name in batches}
    found = []
    for width in widths:
        wide = widened(settings, width)
        found.append(jax.jit(lambda seeds, wide=wide: jax.lax.map(
            lambda seed: _followed(replace(wide, seed=seed), probe, batches), seeds))(jnp.arange(seeds)))
    size, change = ({tap: np.stack([np.asarray(each[kind][tap]) for each in found]) for tap in TAPS} for kind in (0, 1))
    return Trace(tuple(widths), size, change)


def _followed(settings, probe, batches):
    """Returns the sizes and the changes {tap: [steps+1]} of one run."""
    parts = train.parts(settings)

    def seen(params):
        flowing = settings.model.activations(params, **probe)
        return {tap: flowing[tap].astype(jnp.float32) for tap in TAPS}
    first = parts.init()
    start = seen(first.params)

    def measure(params):
        now = seen(params)
        return ({tap: jnp.mean(jnp.abs(now[tap])) for tap in TAPS},
                {tap: jnp.mean(jnp.abs(now[tap] - start[tap])) for tap in TAPS})

    def advance(state, batch):
        state, _ = parts.step(state, batch)
        return state, measure(state.params)
    _, later = jax.lax.scan(advance, first, batches)
    return jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), measure(first.params), later)


def rows(found):
    """Returns the Rows of a Trace: of every tap its size at the start and at the end, and its change.

    No size may grow with width. No change may grow either, nor vanish: then nothing inside the model learns.
    """
    after = f'after {found.steps} step{"s" * (found.steps > 1)}'
    return [row for tap in TAPS
            for row in (_row(found, tap, 'size at the start', found.size[tap][..., 0], -math.inf),
                        _row(found, tap, f'size {after}', found.size[tap][..., -1], -math.inf),
                        _row(found, tap, f'change {after}', found.change[tap][..., -1], -LIMIT))]


def _row(found, tap, when, values, least):
    """Returns the Row of values [widths seeds] whose exponent is to be between `least` and LIMIT."""
    with np.errstate(all='ignore'):
        logs = np.log2(values)
    if not np.isfinite(logs).all():
        fault = 'is zero' if np.isfinite(values).all() else INFINITE
        return Row(tap, when, tuple(values.mean(1)), math.nan, math.nan, fault)
    each = np.polyfit(np.log2(found.widths), logs, 1)[0]
    exponent = float(np.polyfit(np.log2(found.widths), np.log2(values.mean(1)), 1)[0])
    spread = float(np.std(each, ddof=1)) if len(each) > 1 else math.nan
    fault = 'grows' if exponent > LIMIT else 'vanishes' if exponent < least else ''
    return Row(tap, when, tuple(values.mean(1)), exponent, spread, fault)


def verdict(table, settings):
    """Returns whether no Row has a fault, and a sentence that says so or names the worst."""
    bad = [row for row in table if row.fault]
    if not bad:
        return True, f'pass: nothing grows past width^{LIMIT} and no change vanishes past width^-{LIMIT}.'
    worst = max(bad, key=lambda row: abs(row.exponent) if math.isfinite(row.exponent) else math.inf)
    told = f'fail: {worst.tap}, {worst.when}, {worst.fault}'
    model = settings.model
    told += f' as width^{worst.exponent:.2f}' if math.isfinite(worst.exponent) else ''
    if worst.fault == INFINITE:
        told += '; try a lower rate'
    elif not model.base.sizes:
        told += f'; try model.base.width={model.width} model.base.heads={model.layers[0].attention.heads}'
    return False, f'{told}.'


def as_text(found, table):
    """Returns the Rows as text, one number for each width."""
    head = ('mean |activation|', '', *(f'width {width}' for width in found.widths), 'exponent', '')
    return columns(head, [(row.tap, row.when, *(f'{size:.4g}' for size in row.sizes), _exponent(row), row.fault)
                               for row in table])


def _exponent(row):
    if not math.isfinite(row.exponent):
        return '-'
    return f'{row.exponent:+.2f}' + (f' ± {row.spread:.2f}' if math.isfinite(row.spread) else '')


def as_page(found, table, title, told):
    """Returns the Trace as the text of one HTML file: the verdict, plots against width, the table."""
    drawn = {name: {str(step): _plot(found, name, step) for step in range(found.steps, first - 1, -1)}
             for name, (first, _, _) in DRAWN.items()}
    sections = [tags.section(said, figures.figure(name, {step: f'step {step}' for step in drawn[name]},
                                              f'{caption} Bands span all seeds.', log_y=True))
               for name, (_, said, caption) in DRAWN.items()]
    cells = [(row.tap, row.when, _exponent(row), row.fault or 'as it should') for row in table]
    body = '\n'.join([f'<h1>{markup.escape(title)}</h1>', tags.paragraph(told, ''), *sections,
                      tags.section('Exponents', tags.table(HEAD, cells))])
    return document.render(title, body, drawn)


def _plot(found, name, step):
    series = [{'name': tap, **{line: figures.rounded(reduce(values[..., step], axis=1))
                               for line, reduce in (('mean', np.mean), ('low', np.min), ('high', np.max))}}
              for tap, values in getattr(found, name).items()]
    return {'x': figures.rounded(np.array(found.widths, float)), 'xname': 'width', 'yname': DRAWN[name][1],
            'series': series}


def numbers(text):
    """Returns the widths that '64,128' lists, ascending; raises config.Error where they are not two or more."""
    parts = [part.strip() for part in text.split(',')]
    if not all(part.isdigit() for part in parts) or len(set(parts)) < 2:
        raise config.Error(f'--widths={text} is no list of two widths or more; try --widths=64,128,256,512.')
    return tuple(sorted({int(part) for part in parts}))
