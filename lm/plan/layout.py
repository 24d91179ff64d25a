"""Layouts of a training step on a cluster, mesh x rematerialisation x micro-batches x vocabulary chunks x schedule of a
pipeline, and all there are of an experiment.
"""
import dataclasses
import itertools
import json

from lm.config.divisors import divisors
from lm.parallel import sharding
from lm.parallel.pipeline import Pipeline
from lm.plan import shape

ROWS = 4096  # of the output layer, about, in the chunks of the vocabulary that a search tries


@dataclasses.dataclass(frozen=True)
class Layout:
    """mesh: {axis: size}, without -1. remat, vocab_chunks, pipeline: of the model. accumulate: micro-batches of a step.
    """

    mesh: dict
    remat: str
    accumulate: int
    vocab_chunks: int
    pipeline: Pipeline = dataclasses.field(default_factory=Pipeline)

    @property
    def stages(self):
        return self.mesh.get('stage', 1)

    def applied_to(self, settings):
        """Returns a train.Config in this layout; raises config.Error where the two contradict each other."""
        model = shape.with_execution(settings.model, remat=self.remat, vocab_chunks=self.vocab_chunks,
                                     pipeline=self.pipeline)
        return dataclasses.replace(settings, model=model, mesh=dict(self.mesh), accumulate=self.accumulate)

    def lines(self):
        """Returns the two lines to write into the experiment: of the model's Execution and of train.Config."""
        schedule = f' pipeline={self.pipeline},' if self.stages > 1 else ''
        return [f'remat={self.remat!r}, vocab_chunks={self.vocab_chunks},{schedule}',
                f'mesh={self.mesh}, accumulate={self.accumulate},']

    def changes(self, other):
        """Returns the overrides of `lm` that turn the layout `other` into this one."""
        overrides = [] if self.mesh == other.mesh else [f'mesh={json.dumps(self.mesh)}']
        for name in ('remat', 'vocab_chunks'):
            if getattr(self, name) != getattr(other, name):
                overrides.append(f'model.execution.{name}={getattr(self, name)}')
        if self.stages > 1 and self.pipeline.microbatches != other.pipeline.microbatches:
            overrides.append(f'model.execution.pipeline.microbatches={self.pipeline.microbatches}')
        if self.accumulate != other.accumulate:
            overrides.append(f'accumulate={self.accumulate}')
        return overrides


def layout_of(settings, devices):
    """Returns the Layout that a train.Config asks for on so many devices; raises config.Error if its mesh cannot."""
    model = shape.shape_of(settings.model)
    return Layout(sharding.fill(settings.mesh, devices), model.remat, settings.accumulate, model.vocab_chunks,
                  model.pipeline)


def all_layouts(settings, cluster):
    """Yields every Layout of an experiment on a cluster, several thousand for 256 devices.

    Data, FSDP, tensor, context, expert and pipeline parallelism; between TPU slices data parallelism alone, between GPU
    nodes FSDP and stages too. An axis must divide what it splits: heads, F and the vocabulary by tensor, experts by
    expert, the row by context, layers by stage, rows by the rest. A pipeline has one, two or four times as many
    micro-batches as stages, and keeps its repeats.
    """
    model, rows = shape.shape_of(settings.model), settings.data.batch
    chunks = min(divisors(model.vocab), key=lambda count: abs(model.vocab / count - ROWS))
    for mesh in _meshes(model, settings.data.context, cluster):
        shards = mesh.get('data', 1) * mesh.get('fsdp', 1) * mesh.get('expert', 1)
        if rows % shards:
            continue
        for accumulate, remat, vocab_chunks in itertools.product(
                divisors(rows // shards), shape.RECOMPUTED, sorted({1, model.vocab_chunks, chunks})):
            for pipeline in _schedules(model.pipeline, mesh.get('stage', 1), rows // shards // accumulate):
                yield Layout(mesh, remat, accumulate, vocab_chunks, pipeline)


def _schedules(pipeline, stages, rows):
    """Returns the Pipelines that are tried for so many stages and rows of a data shard."""
    if stages == 1:
        return [pipeline]
    return [dataclasses.replace(pipeline, microbatches=count) for count in (stages, 2 * stages, 4 * stages)
            if rows % count == 0]


def _meshes(model, context, cluster):
    """Yields the meshes {axis: size} that fill a cluster and divide a model's Shape and a row of `context` tokens."""
    island = cluster.devices // cluster.count  # devices of a slice or a node, joined by fast links
    tensors = [n for n in (1, 2, 4, 8, 16)
               if model.heads % n == model.kv_heads % n == model.ff % n == model.vocab % n == 0]
    contexts = [n for n in (1, 2, 4, 8) if n == 1 or context % (2 * n * 1024) == 0]
    experts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n == 1 or (model.experts and model.experts.count % n == 0)]
    stages = [n for n in (1, 2, 4, 8, 16) if n == 1 or model.depth % (n * model.pipeline.repeats * model.period) == 0]
    reach = island if cluster.chip.torus else cluster.devices  # devices that FSDP and stages may join
    for tensor, context_size, expert, stage in itertools.product(tensors, contexts, experts, stages):
        inner = tensor * context_size * expert
        if island % inner or reach % (inner * stage):
            continue
        for fsdp in divisors(reach // inner // stage):
            mesh = {'data': cluster.devices // inner // stage // fsdp, 'stage': stage, 'fsdp': fsdp, 'expert': expert,
                    'context': context_size, 'tensor': tensor}
            yield {axis: size for axis, size in mesh.items() if size > 1} or {'data': 1}
