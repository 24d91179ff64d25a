"""Step times that others measured, a table of rows with the model's shape, beside what `lm plan` predicts for each."""
import dataclasses
import difflib
import functools
import math
import pathlib
import statistics
from typing import Literal

from lm import config, data, hardware, optim, train
from lm.config import files
from lm.models import Decoder, Head, Layer
from lm.nn import MLP, Attention, Execution, Experts, Gelu, Relu, Rope, Silu, memory
from lm.plan import analytic, roofline
from lm.plan.layout import layout_of

ACTIVATIONS = {'swiglu': (Silu(), True), 'geglu': (Gelu(), True), 'gelu': (Gelu(), False), 'relu': (Relu(), False)}
LARGEST = {'depth': 2 ** 12, '': 2 ** 24}  # of a row's whole numbers: what is traced takes time by the layers
PRECISIONS = {'bf16': 'bfloat16', 'fp32': 'float32'}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shape of a row's model, as a table writes it. kv_heads, head_dim: 0 as in Attention.

    experts: in place of the dense MLP, of ACTIVATIONS too; a table writes {"count": 128, "top_k": 8, "ff": 768}.
    """

    vocab: config.Size
    depth: config.Size
    heads: config.Size
    width: config.Size
    ff: config.Size
    kv_heads: config.Count = 0
    head_dim: config.Count = 0
    activation: Literal['swiglu', 'geglu', 'gelu', 'relu'] = 'swiglu'
    tied: bool = False
    experts: Experts | None = None

    def __post_init__(self):
        config.check(self)

    def model(self, execution):
        """Returns the Decoder of these sizes."""
        activation, gated = ACTIVATIONS[self.activation]
        mlp = (dataclasses.replace(self.experts, activation=activation, gated=gated) if self.experts
               else MLP(ff=self.ff, activation=activation, gated=gated))
        attention = Attention(heads=self.heads, kv_heads=self.kv_heads, head_dim=self.head_dim, position=Rope())
        return Decoder(vocab=self.vocab, depth=self.depth, width=self.width, layer=Layer(attention, mlp),
                       head=Head(tied=self.tied), execution=execution)


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured step: `batch` rows of `seq` tokens over a mesh {axis: size} of the hardware `on`.

    remat_lm: the nearest rematerialisation of ours. loss_parts: chunks of the vocabulary. flops_exact: FLOPs of a
    device where the published rematerialisation is none of ours, {'products', 'head', 'attention'}. model: what a fit
    leaves out together. source: where it was published.
    """

    id: str
    on: str
    batch: config.Size
    seq: config.Size
    mesh: dict
    remat_lm: memory.Remat
    measured_step_s: config.Positive
    shape: Sizes
    model: str = ''
    source: str = ''
    accumulate: config.Size = 1
    loss_parts: config.Size = 1
    precision: Literal['bf16', 'fp32'] = 'bf16'
    flops_exact: dict[str, config.NonNegative] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        config.check(self)
        if self.flops_exact and self.flops_exact.keys() != {'products', 'head', 'attention'}:
            raise config.Error(f'flops_exact has {", ".join(self.flops_exact)}; give products, head and attention.')
        shards = self.accumulate * math.prod(self.mesh.get(axis, 1) for axis in analytic.ROW_AXES)
        if self.batch % shards:
            raise config.Error(f'batch={self.batch} does not divide over {shards} shards and micro-batches; '
                               f'try batch={max(1, round(self.batch / shards)) * shards}.')

    @property
    def chip(self):
        """Name of the chip."""
        return hardware.cluster(self.on).chip.name

    def settings(self):
        """Returns the train.Config of the run."""
        execution = Execution(dtype=PRECISIONS[self.precision], remat=self.remat_lm, vocab_chunks=self.loss_parts)
        return _settings(self.shape.model(execution), self.seq, self.batch, mesh=self.mesh,
                         accumulate=self.accumulate)


def _settings(model, context, batch, **layout):
    corpus = data.Corpus(train=data.Synthetic(), valid=None, tokenizer=data.Bytes(), context=context, batch=batch)
    return train.Config(model=model, data=corpus, optimizer=optim.AdamW(peak=1e-3), steps=1, **layout)


def read(path):
    """Returns ([Row], {row: reason}) of a JSON table: its rows, and why others cannot be planned."""
    table = files.read_json(pathlib.Path(path), list, 'docs/planning.md has the form of a table of measured steps.')
    rows, refused = [], {}
    for number, fields in enumerate(table, start=1):
        try:
            rows.append(_row(fields))
        except (config.Error, TypeError) as error:  # TypeError: of a text where a model compares a number
            name = fields.get('id') if isinstance(fields, dict) else None
            refused[f'row {number} ({name})' if name else f'row {number}'] = str(error)
    return rows, refused


def _row(fields):
    """Returns the Row of a table's fields, whose model, hardware and mesh exist; fields of other names are remarks."""
    row = _made(Row, 'a row', fields)
    cluster = hardware.cluster(row.on)
    layout_of(row.settings(), cluster.devices)
    return row


def _made(cls, name, fields):
    """Returns the dataclass `cls` of a JSON object, `shape` and `experts` made first; errors call the object `name`."""
    if not isinstance(fields, dict):
        raise config.Error(f'{name} is {fields!r}, not an object of fields; see docs/planning.md.')
    fields = dict(fields)
    for inner, kind in ('shape', Sizes), ('experts', Experts):
        if inner in fields:
            fields[inner] = _made(kind, inner, fields[inner])
    known = {field.name: field for field in dataclasses.fields(cls)}
    for field in fields.keys() - known.keys():
        if near := difflib.get_close_matches(field, known.keys() - fields.keys(), n=1, cutoff=0.8):
            raise config.Error(f'{field!r} is no field of {name}; did you mean {near[0]!r}?')
    absent = [field.name for field in known.values() if field.name not in fields
              and field.default is field.default_factory is dataclasses.MISSING]
    if absent:
        raise config.Error(f'{name} has no {absent[0]!r}; see docs/planning.md.')
    values = {field: value for field, value in fields.items() if field in known}
    for field, value in values.items():
        if isinstance(value, int) and value > LARGEST.get(field, LARGEST['']):
            raise config.Error(f'{field}={value} of {name} is more than any run had; see docs/planning.md.')
    try:
        return cls(**values)
    except config.Error:
        raise
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:  # a text or null where a number is
        raise config.Error(f'{name} has a value of a wrong type: {error}') from error


@functools.cache  # tracing a model takes seconds, and many rows have the same
def _workload(model):
    """Returns the Workload of a model on one row of one token; what depends on its data is to be replaced."""
    return analytic.workload_of(_settings(model, context=1, batch=1))


def cost_of(row):
    """Returns (cluster, mesh, dtype, cost) of a Row's step, as roofline.roofline takes them, in closed form."""
    settings, cluster = row.settings(), hardware.cluster(row.on)
    state, layout = _workload(settings.model), layout_of(settings, cluster.devices)
    workload = dataclasses.replace(state, settings=settings, own=False)
    cost = analytic.step_cost(layout, workload, cluster.chip)
    if row.flops_exact:
        cost |= {'flops': sum(row.flops_exact.values()),
                 'attention': {workload.shape.head_dim: row.flops_exact['attention']}}
    return cluster, layout.mesh, workload.shape.dtype, cost


def compare(path):
    """Returns {'rows', 'chips', 'refused'} of a JSON table: each row's predicted_step_s and measured_step_s, the errors
    by chip, and {row: reason} of rows that cannot be planned.
    """
    rows, refused = read(path)
    if not rows:
        raise config.Error(f'no row of {path} can be planned: {next(iter(refused.values()), "it has none")}')
    roofs = [roofline.roofline(*cost_of(row)) for row in rows]
    pairs = [(roof, row.measured_step_s) for row, roof in zip(rows, roofs, strict=True)]
    chips = {chip: [pair for row, pair in zip(rows, pairs, strict=True) if row.chip == chip]
             for chip in sorted({row.chip for row in rows})} | {'all': pairs}
    return {'rows': [_compared(*pair) for pair in zip(rows, roofs, strict=True)],
            'chips': {chip: summary(steps) for chip, steps in chips.items()}, 'refused': refused}


def _compared(row, roof):
    low, high = roof.range
    return {'id': row.id, 'chip': row.chip, 'measured_step_s': row.measured_step_s, 'predicted_step_s': roof.seconds,
            'low_s': low, 'high_s': high, 'floor_s': roof.floor, 'inside': roof.holds(row.measured_step_s)}


def summary(pairs):
    """Returns the number of (Roofline, measured seconds), their median relative error, and the share inside the range.
    """
    return {'rows': len(pairs),
            'median_error': statistics.median(abs(roof.seconds / measured - 1) for roof, measured in pairs),
            'inside': statistics.mean(roof.holds(measured) for roof, measured in pairs)}


def as_text(comparison):
    """Returns a comparison as lines of text."""
    lines = [f'{"step, s":<40}{"measured":>10}{"predicted":>11}{"range":>18}{"floor":>9}']
    for row in comparison['rows']:
        span = f'{row["low_s"]:.3f}-{row["high_s"]:.3f}'
        lines.append(f'{row["id"]:<40}{row["measured_step_s"]:>10.3f}{row["predicted_step_s"]:>11.3f}{span:>18}'
                     f'{row["floor_s"]:>9.3f}{"" if row["inside"] else "  outside"}')
    lines += ['', f'{"chip":<40}{"rows":>10}{"median error":>14}{"inside":>9}']
    lines += [f'{chip:<40}{part["rows"]:>10}{part["median_error"]:>14.1%}{part["inside"]:>9.0%}'
              for chip, part in comparison['chips'].items()]
    return '\n'.join([*lines, *(f'not planned: {name}: {reason}' for name, reason in comparison['refused'].items())])
