"""Layouts of an experiment on a cluster: the mesh, the rematerialisation and the micro-batches."""
import dataclasses
import itertools
import json
import math

from lm import config
from lm.parallel import sharding

REMATS = ('none', 'dots', 'full', 'offload')


@dataclasses.dataclass(frozen=True)
class Layout:
    """sizes: the mesh, {axis: size} without -1. remat, loss_parts: of the model. accumulate: micro-batches."""

    sizes: dict
    remat: str
    accumulate: int
    loss_parts: int

    def of(self, settings):
        """Returns the settings under this layout; raises config.Error where they do not go together."""
        model = dataclasses.replace(settings.model, remat=self.remat, loss_parts=self.loss_parts)
        return dataclasses.replace(settings, model=model, mesh=dict(self.sizes), accumulate=self.accumulate)

    def lines(self):
        """Returns the two lines to write into the experiment: of the model and of train.Config."""
        return [f'remat={self.remat!r}, loss_parts={self.loss_parts},',
                f'mesh={self.sizes}, accumulate={self.accumulate},']

    def changes(self, other):
        """Returns the overrides that make `other` this one."""
        said = [] if self.sizes == other.sizes else [f'mesh={json.dumps(self.sizes)}']
        for field in ('remat', 'loss_parts'):
            if getattr(self, field) != getattr(other, field):
                said.append(f'model.{field}={getattr(self, field)}')
        if self.accumulate != other.accumulate:
            said.append(f'accumulate={self.accumulate}')
        return said


def given(settings, count):
    """Returns the Layout that an experiment asks for on `count` devices; raises config.Error if its mesh cannot."""
    sizes = sharding.fill(settings.mesh, count)
    return Layout(sizes, settings.model.remat, settings.accumulate, settings.model.loss_parts)


def every(settings, cluster):
    """Yields the Layouts that an experiment can have on a cluster, several thousand for 256 devices.

    Data, fsdp, tensor, context and expert parallelism; between slices data alone, between nodes fsdp too. What divides:
    heads and the feed-forward width by tensor, experts by expert, length by context, rows by the rest. Not stages:
    what a pipeline holds depends on its schedule, which the formulas do not know, and on links this fast its idle turns
    cost more than the bytes of fsdp that it saves. A mesh with stages can be planned without a search.
    """
    model, island = settings.model, cluster.devices // cluster.count
    for tensor, context, expert in itertools.product(_tensor(model), _context(settings), _expert(model)):
        inner = tensor * context * expert
        if island % inner:
            continue
        for fsdp in _divisors((island if cluster.chip.torus else cluster.devices) // inner):
            outer = cluster.devices // inner // fsdp
            sizes = {'data': outer, 'fsdp': fsdp, 'expert': expert, 'context': context, 'tensor': tensor}
            sizes = {axis: size for axis, size in sizes.items() if size > 1} or {'data': 1}
            yield from _within(settings, sizes, outer * fsdp * expert)


def _within(settings, sizes, shards):
    rows = settings.data.batch
    if rows % shards:
        return
    parts = sorted({1, settings.model.loss_parts, _parts(settings.model)})
    for accumulate, remat, loss_parts in itertools.product(_divisors(rows // shards), REMATS, parts):
        yield Layout(sizes, remat, accumulate, loss_parts)


def _parts(model, rows=4096):
    """Returns how many parts of about so many rows the output can be scored in."""
    return min(_divisors(model.padded), key=lambda parts: abs(model.padded / parts - rows))


def _tensor(model):
    ff = model.ff or 4 * model.width
    return [n for n in (1, 2, 4, 8, 16) if model.heads % n == model.groups % n == ff % n == model.padded % n == 0]


def _context(settings):
    return [n for n in (1, 2, 4, 8) if n == 1 or settings.data.context % (2 * n * 1024) == 0]


def _expert(model):
    return [n for n in (1, 2, 4, 8, 16, 32, 64) if n == 1 or (model.experts and model.experts.count % n == 0)]


def _divisors(number):
    return [n for n in range(1, number + 1) if number % n == 0]


def check(settings):
    """Raises config.Error where the experiment's model is not one that the analytic model knows."""
    missing = [name for name in ('remat', 'loss_parts', 'heads', 'groups', 'padded', 'experts')
               if not hasattr(settings.model, name)]
    if missing:
        raise config.Error(f'{type(settings.model).__name__} has no {missing[0]}, which layouts are made of; '
                           'plan it without --search.')


def rows(layout, settings):
    """Returns (rows, tokens in a row) of one micro-batch on one device."""
    shards = math.prod(layout.sizes.get(axis, 1) for axis in ('data', 'fsdp', 'expert'))
    return (settings.data.batch / layout.accumulate / shards, settings.data.context / layout.sizes.get('context', 1))
