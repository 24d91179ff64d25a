"""Step times that others measured, a table of rows with the model's shape, beside what `lm plan` predicts for each."""
import dataclasses
import difflib
import functools
import json
import pathlib
import statistics

from lm import config, data, hardware, optim, train
from lm.models import Decoder, Head, Layer
from lm.nn import MLP, Attention, Execution, Experts, Gelu, Relu, Rope, Silu
from lm.plan import analytic, roofline
from lm.plan.layout import layout_of

ACTIVATIONS = {'swiglu': (Silu(), True), 'geglu': (Gelu(), True), 'gelu': (Gelu(), False), 'relu': (Relu(), False)}
PRECISIONS = {'bf16': 'bfloat16', 'fp32': 'float32'}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The shape of a row's model, as a table writes it. kv_heads, head_dim: 0 as in Attention.

    experts: fields of Experts, such as {'count': 128, 'top_k': 8, 'ff': 768}, in place of the dense MLP.
    """

    vocab: int
    depth: int
    heads: int
    width: int
    ff: int
    kv_heads: int = 0
    head_dim: int = 0
    activation: str = 'swiglu'
    tied: bool = False
    experts: dict = dataclasses.field(default_factory=dict)

    def model(self, execution):
        """Returns the Decoder of these sizes."""
        activation, gated = ACTIVATIONS[self.activation]
        mlp = (Experts(**self.experts, activation=activation, gated=gated) if self.experts
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
    batch: int
    seq: int
    mesh: dict
    remat_lm: str
    measured_step_s: float
    shape: dict
    model: str = ''
    source: str = ''
    accumulate: int = 1
    loss_parts: int = 1
    precision: str = 'bf16'
    flops_exact: dict = dataclasses.field(default_factory=dict)

    @property
    def chip(self):
        """Name of the chip."""
        return hardware.cluster(self.on).chip.name

    def settings(self):
        """Returns the train.Config of the run."""
        execution = Execution(dtype=PRECISIONS[self.precision], remat=self.remat_lm, vocab_chunks=self.loss_parts)
        return _settings(Sizes(**self.shape).model(execution), self.seq, self.batch, mesh=self.mesh,
                         accumulate=self.accumulate)


def _settings(model, context, batch, **layout):
    corpus = data.Corpus(train=data.Synthetic(), valid=None, tokenizer=data.Bytes(), context=context, batch=batch)
    return train.Config(model=model, data=corpus, optimizer=optim.AdamW(peak=1e-3), steps=1, **layout)


def read(path):
    """Returns ([Row], {id: reason}) of a JSON table: its rows, and why others cannot be planned."""
    try:
        table = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise config.Error(f'{path} is no table of measured steps ({error}); see docs/planning.md.') from error
    rows, refused = [], {}
    for number, fields in enumerate(table):
        try:
            rows.append(_row(fields))
        except (config.Error, AttributeError, TypeError) as error:
            name = fields.get('id', f'row {number}') if isinstance(fields, dict) else f'row {number}'
            refused[name] = f'{error}'
    return rows, refused


def _row(fields):
    """Returns the Row of a table's fields, whose model, hardware and mesh exist; fields of other names are remarks."""
    known = {field.name for field in dataclasses.fields(Row)}
    for name in fields.keys() - known:
        if near := difflib.get_close_matches(name, known - fields.keys(), n=1, cutoff=0.8):
            raise config.Error(f'{name!r} is no field of a row; did you mean {near[0]!r}?')
    row = Row(**{name: value for name, value in fields.items() if name in known})
    for value, choices in ((row.precision, PRECISIONS), (Sizes(**row.shape).activation, ACTIVATIONS)):
        if value not in choices:
            raise config.Error(f'{value!r} is not planned; there are {", ".join(choices)}.')
    layout_of(row.settings(), hardware.cluster(row.on).devices)
    return row


@functools.cache  # tracing a model takes seconds, and many rows have the same
def _workload(model):
    """Returns the Workload of a model on one row of one token; what depends on its data is to be replaced."""
    return analytic.workload_of(_settings(model, context=1, batch=1))


def cost_of(row):
    """Returns (cluster, mesh, dtype, cost) of a Row's step, as roofline.roofline takes them, in closed form."""
    settings, cluster = row.settings(), hardware.cluster(row.on)
    state, layout = _workload(settings.model), layout_of(settings, cluster.devices)
    workload = dataclasses.replace(state, settings=settings, own=False,
                                   attended=analytic.attended_share(settings.model, row.seq))
    cost = analytic.step_cost(layout, workload, cluster.chip)
    if row.flops_exact:
        cost |= {'flops': sum(row.flops_exact.values()),
                 'attention': {workload.shape.head_dim: row.flops_exact['attention']}}
    return cluster, layout.mesh, workload.shape.dtype, cost


def compare(path):
    """Returns {'rows', 'chips', 'refused'} of a JSON table: each row's predicted_step_s and measured_step_s, the errors
    by chip, and {id: reason} of rows that cannot be planned.
    """
    compared = []
    rows, refused = read(path)
    if not rows:
        raise config.Error(f'no row of {path} can be planned: {next(iter(refused.values()), "it has none")}')
    for row in rows:
        roof = roofline.roofline(*cost_of(row))
        low, high = roof.range
        compared.append({'id': row.id, 'chip': row.chip, 'measured_step_s': row.measured_step_s,
                         'predicted_step_s': roof.seconds, 'low_s': low, 'high_s': high, 'floor_s': roof.floor,
                         'inside': low <= row.measured_step_s <= high})
    chips = sorted({row['chip'] for row in compared})
    by_chip = {chip: summary([row for row in compared if row['chip'] == chip]) for chip in chips}
    return {'rows': compared, 'chips': by_chip | {'all': summary(compared)}, 'refused': refused}


def summary(compared):
    """Returns the number of compared rows, the median of their relative errors, and the share inside the range."""
    errors = [abs(row['predicted_step_s'] / row['measured_step_s'] - 1) for row in compared]
    return {'rows': len(errors), 'median_error': statistics.median(errors),
            'inside': statistics.mean(row['inside'] for row in compared)}


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
