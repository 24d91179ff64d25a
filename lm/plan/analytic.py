"""Memory, FLOPs, HBM traffic and collective traffic of a training step on each device, in closed form."""
import functools
import math
import types
from dataclasses import dataclass

import jax

from lm import train
from lm.parallel import reductions, sharding
from lm.parallel.pipeline import Pipeline
from lm.plan.shape import RECOMPUTED, Shape, shape_of

# How often a compiled layer moves each kind of value through HBM, reads and writes together: fitted to nine programs
# of dense models and experts for v5e, v5p and v6e (libtpu 0.0.52), whose bytes this counts within 14%.
RESIDUAL, HEADS, HIDDEN = 95, 6, 8.7  # values [D], [2 (N + K) H], and [F] of each of the MLP's matrices, of a token
NORMS = 15  # of RESIDUAL: what other programs keep of norms in float32 where they recompute nothing
ROUTED = 70  # values [D] of a row in the experts' buffers: gathered, exchanged, sorted, scattered, and their gradients
SPILL = 1.1  # share of a layer's values that go through HBM where the largest is as large as the on-chip memory
CHUNK = 9  # values [D], once more for each further chunk of the MLP
WEIGHTS = {'none': 10, 'dots': 6, 'full': 6, 'offload': 6}  # gathered elements; 'none' keeps them for the backward pass
ROW_AXES = ('data', 'fsdp', 'expert')  # mesh axes that split the rows of a batch


@dataclass(frozen=True)
class Workload:
    """An experiment as the formulas see it: settings, model and state.

    The state's arrays are tuples of (logical axes, shape, bytes of an element). own: whether this codebase computes it,
    with the MLP in chunks and weights gathered in windows; other programs do neither.
    """

    settings: train.Config
    shape: Shape
    parameters: tuple
    optimizer: tuple
    own: bool = True


def workload_of(settings):
    """Returns the Workload of a train.Config; shapes only, nothing is computed."""
    params = settings.start.shapes(settings.model)
    optimizer = jax.eval_shape(train.parts(settings).init, params).optimizer
    names = sharding.names_by_path(settings.model.axes())

    def arrays(tree):
        return tuple((names(path, x), x.shape, x.dtype.itemsize)
                     for path, x in jax.tree_util.tree_leaves_with_path(tree))
    return Workload(settings, shape_of(settings.model), arrays(params), arrays(optimizer))


def device_bytes(arrays, mesh, zero=False):
    """Returns the bytes of a Workload's arrays that one device of a mesh {axis: size} holds."""
    return _device_bytes(arrays, tuple(mesh.items()), zero)


@functools.cache  # a search asks again for each rematerialisation and each number of micro-batches of a mesh
def _device_bytes(arrays, sizes, zero):
    mesh = types.SimpleNamespace(shape=dict(sizes), manual_axes=())
    total = 0
    for names, shape, itemsize in arrays:
        split = sharding.spec(names, shape, mesh, sharding.ZERO if zero else sharding.RULES)
        axes = [axis for entry in split if entry for axis in ((entry,) if isinstance(entry, str) else entry)]
        total += itemsize * math.prod(shape) / math.prod(mesh.shape[axis] for axis in axes)
    return total


@dataclass(frozen=True)
class DeviceShape:
    """What one device has of a model and of one micro-batch.

    tokens: of the micro-batch, or of that of a pipeline. turns: how often the device runs its `layers` on so many, the
    idle turns of a pipeline included: each takes the time and keeps the bytes of any other. head_tokens: that the
    output layer sees. stream: D of the residual stream, times its share of the length under tensor parallelism. query,
    key: N H and K H. ff: F, of a mixture that of all experts of a token. routed: rows [D] in the experts' buffers, a
    token. layer_weights: elements of one layer, gathered over fsdp but not over tensor. table: elements of the output
    layer. vocab: rows of it in one chunk.
    """

    tokens: float
    turns: int
    head_tokens: float
    stream: float
    query: float
    key: float
    ff: float
    routed: float
    layers: float
    layer_weights: float
    table: float
    vocab: float

    @property
    def layer_runs(self):
        """How many layers the device runs in one micro-batch of a step."""
        return self.turns * self.layers


def device_shape(layout, workload):
    """Returns the DeviceShape of a Workload under a Layout."""
    shape, mesh, data = workload.shape, layout.mesh, workload.settings.data
    rows = data.batch / layout.accumulate / math.prod(mesh.get(axis, 1) for axis in ROW_AXES)
    tensor, stage, owners = (mesh.get(axis, 1) for axis in ('tensor', 'stage', 'expert'))
    ff, routed = shape.ff, 0
    if shape.experts:
        ff = shape.experts.ff * (shape.experts.top_k + shape.experts.shared)
        # without a capacity factor a device must have room for the tokens of all owners
        routed = shape.experts.top_k * (1 if owners == 1 else shape.experts.capacity_factor or owners)
    gathered = {axis: size for axis, size in mesh.items() if axis in ('tensor', 'expert', 'stage')}
    matrices = tuple(array for array in workload.parameters if 'layers' in array[0] and len(array[1]) > 2)
    schedule = layout.pipeline if stage > 1 else Pipeline(1)
    batches = schedule.microbatches or stage
    length = data.context / mesh.get('context', 1)
    return DeviceShape(
        tokens=rows * length / batches, turns=batches * schedule.repeats + stage - 1, head_tokens=rows * length / stage,
        stream=shape.width / (1 if length % tensor else tensor), query=shape.heads * shape.head_dim / tensor,
        key=shape.kv_heads * shape.head_dim / min(tensor, shape.kv_heads), ff=ff / tensor, routed=routed,
        layers=shape.depth / stage / schedule.repeats,
        layer_weights=device_bytes(matrices, gathered) / 4 / (shape.depth / stage),
        table=shape.vocab * shape.width / tensor,
        vocab=shape.vocab / tensor / layout.vocab_chunks)


def peak_memory(layout, workload):
    """Returns {what: bytes} of one device at the fullest moment of a step."""
    settings, shape, device = workload.settings, workload.shape, device_shape(layout, workload)
    parameters = device_bytes(workload.parameters, layout.mesh)
    rows = settings.data.batch / math.prod(layout.mesh.get(axis, 1) for axis in ROW_AXES)
    return {'parameters': parameters, 'optimizer': device_bytes(workload.optimizer, layout.mesh, settings.zero),
            'batch': 4 * rows * (2 * settings.data.context + 1),
            'gradients': parameters * (2 if layout.accumulate > 1 else 1),  # the sum, and those of one micro-batch
            'saved': device.layer_runs * _saved_bytes(layout.remat, shape, device) * device.tokens,
            'working': max(_layer_working_bytes(layout.remat, shape, device),
                           _loss_working_bytes(layout, shape, device))}


def _saved_bytes(remat, shape, device):
    """Returns the bytes, for each token, that one layer keeps for the backward pass."""
    if remat == 'offload':
        return 0
    if remat == 'full':
        return shape.itemsize * device.stream
    products = device.query + 2 * device.key + shape.up_projections * device.ff + 2 * device.stream
    products *= shape.itemsize
    if remat == 'dots':
        return products + shape.itemsize * device.stream
    # rotated queries, attention's output, hidden units; statistics of the softmax in float32
    return products + shape.itemsize * (2 * device.query + device.ff) + 4 * device.query / shape.head_dim


def _layer_working_bytes(remat, shape, device):
    """Returns the bytes of one layer's backward pass: its gathered weights, their gradients, and its activations."""
    ups = shape.up_projections
    if RECOMPUTED[remat] < 1:
        # gradients of hidden units, up and gate, or of queries, keys, values and attention's output; of the stream two
        values = max((1 + ups) * device.ff, 3 * device.query + 2 * device.key) + 2 * shape.width
        return shape.itemsize * (device.layer_weights + values * device.tokens)
    # beside the MLP: queries, keys, values, attention's output; the layer's input, the MLP's before its norm and one
    # gradient as the stream is split; the MLP's input and another gradient whole
    beside = 2 * device.query + 2 * device.key + 3 * device.stream + 2 * shape.width
    if shape.experts:
        # rows as dispatched, as sorted by expert, as combined, and the gradients of two of these
        values = (device.routed * (5 * shape.width + (1 + ups) * shape.experts.ff) + shape.experts.top_k * shape.width
                  + beside)
        return shape.itemsize * (device.layer_weights + values * device.tokens)
    chunks = shape.mlp_chunks(round(shape.ff / device.ff))
    absent = (1 - 1 / chunks) * (1 + ups) * shape.width * device.ff  # weights of chunks that are not gathered yet
    values = (1 + 2 * ups) * device.ff / chunks + beside
    return shape.itemsize * (device.layer_weights - absent + values * device.tokens)


def _loss_working_bytes(layout, shape, device):
    """Returns the bytes of the output layer: logits, their gradient, and the gathered chunk of the table.

    In one chunk both are in the dtype of products, and float32 only inside fusions (libtpu 0.0.52: 1.24 GiB of
    temporaries where each takes 0.5).
    """
    itemsize, weights = shape.itemsize, 2 * shape.itemsize * device.table
    if layout.vocab_chunks == 1:
        return device.head_tokens * device.vocab * 2 * itemsize + weights
    return device.head_tokens * (device.vocab * (4 + itemsize) + 2 * 4 * shape.width) + weights / layout.vocab_chunks


def step_cost(layout, workload, chip):
    """Returns {'flops', 'attention', 'hbm_bytes', 'collectives'} as costs.measure does, in closed form."""
    shape, device = workload.shape, device_shape(layout, workload)
    layers = device.layer_runs * device.tokens * _passes(layout.remat, shape, device)
    output = device.head_tokens * device.table * (3 if layout.vocab_chunks == 1 else 4)  # chunks: logits again
    # products [T H] x [H S]: 2 forward, and backward 5, or 7 in a TPU's two kernels, which compute the scores again
    context = workload.settings.data.context
    product = 2 * device.tokens * context * shape.attended(context) * device.query
    kernels = (9 if chip.torus else 7) + 2 * (RECOMPUTED[layout.remat] > 0)
    attention = layout.accumulate * product * device.layer_runs * kernels
    return {'flops': layout.accumulate * 2 * (layers + output) + attention, 'attention': {shape.head_dim: attention},
            'hbm_bytes': _hbm_bytes(layout, workload, device, chip),
            'collectives': {key: sent for key, sent in _collectives(layout, workload, device).items() if sent}}


def _passes(remat, shape, device):
    """Returns the weights of a layer that work on a token, each as often: forward, twice backward, and recomputed.

    The last product of the MLP is not computed again: nothing of the backward pass needs its result.
    """
    if not shape.experts:
        last = shape.width * device.ff
        return 3 * device.layer_weights + (RECOMPUTED[remat] == 1) * (device.layer_weights - last)
    active = shape.width * (2 * device.query + 2 * device.key) + (1 + shape.up_projections) * shape.width * device.ff
    return (3 + (RECOMPUTED[remat] == 1)) * active


def _hbm_bytes(layout, workload, device, chip):
    """Returns the bytes that a device reads from and writes to HBM in a step.

    On-chip memory keeps the values of a layer that fit there, about in the proportion of its size to the largest's.
    """
    shape, size = workload.shape, workload.shape.itemsize
    state = device_bytes(workload.parameters, layout.mesh)
    largest = device.tokens * size * max(device.stream, device.ff / _chunks(layout, workload, device),
                                         device.routed * shape.width)
    spilled = min(1, SPILL * largest / chip.vmem) if chip.vmem else 1
    windows = _windows(layout, workload) if chip.torus and spilled > 0.5 else 0  # small products wait for whole weights
    values = device.layer_runs * device.tokens * _moved_values(layout, workload, device, windows)
    loss = device.head_tokens * _loss_bytes(layout, shape, device, windows)
    weights = size * (device.layer_runs * device.layer_weights * WEIGHTS[layout.remat] + 8 * device.table)
    sums = 4 * state if layout.accumulate > 1 else 0  # zeroed; and read, added to and written
    update = 2 * (state + device_bytes(workload.optimizer, layout.mesh, workload.settings.zero)) + 2 * state
    return layout.accumulate * (spilled * size * values + loss + weights + sums) + update


def _windows(layout, workload):
    """Returns in how many windows libtpu multiplies by a large weight, one for each shard that arrives; 0: whole."""
    shards = layout.mesh.get('fsdp', 1)
    overlapped = workload.own and not workload.shape.experts and 1 < shards <= reductions.COLLECTIVE_MATMUL
    return shards if overlapped else 0


def _chunks(layout, workload, device):
    """Returns in how many chunks of F a layer computes its MLP."""
    shape = workload.shape
    cut = workload.own and RECOMPUTED[layout.remat] == 1 and not shape.experts
    return shape.mlp_chunks(round(shape.ff / device.ff)) if cut else 1


def _moved_values(layout, workload, device, windows):
    """Returns how many values of a token one layer reads and writes, forward and backward.

    Each window of a product reads and writes all of its partial sums.
    """
    shape = workload.shape
    passes = RESIDUAL + CHUNK * (_chunks(layout, workload, device) - 1)
    passes -= NORMS * (workload.own and layout.remat == 'none')
    products = device.query + 2 * device.key + shape.up_projections * device.ff + 2 * shape.width
    partial_sums = windows * (3 + (RECOMPUTED[layout.remat] == 1)) * products
    return (passes * device.stream + partial_sums + HEADS * 2 * (device.query + device.key)
            + ROUTED * device.routed * shape.width + HIDDEN * (1 + shape.up_projections) * device.ff)


def _loss_bytes(layout, shape, device, windows):
    """Returns the bytes that the output layer moves for a token.

    Whole logits are written once and read three times. A chunk of them is float32 in the forward pass (written, read),
    and a gradient in the backward pass (written, read twice); each chunk reads x three times and adds to dx in float32.
    """
    if layout.vocab_chunks == 1:
        return shape.itemsize * (4 * device.vocab + 6 * shape.width)
    per_chunk = device.vocab * (8 + 3 * shape.itemsize + 12 * windows) + shape.width * (8 + 3 * shape.itemsize)
    return layout.vocab_chunks * per_chunk


def _collectives(layout, workload, device):
    """Returns {(collective, mesh axis): bytes that a device sends} of one step."""
    shape, mesh, micro_batches = workload.shape, layout.mesh, layout.accumulate
    passes = 2 + bool(RECOMPUTED[layout.remat])  # over a layer: forward, backward, and forward again
    deferred = micro_batches > 1 and reductions.can_defer(mesh) and not workload.settings.diagnosis.noise_scale
    weights = shape.itemsize * (device.layer_runs * device.layer_weights + device.table * (1 if shape.tied else 2))
    reduced = (device_bytes(workload.parameters, mesh) if deferred  # in float32, once a step
               else micro_batches * weights / mesh.get('fsdp', 1))
    residual, kept = (shape.itemsize * device.tokens * size for size in (shape.width, device.stream))
    streams = micro_batches * device.layer_runs * residual  # a product's input or output, whole
    keys = 2 * shape.itemsize * device.tokens * device.key * (mesh.get('context', 1) - 1)
    routed = residual * shape.experts.top_k * 2 * passes * device.layer_runs if shape.experts else 0

    def share(axis):
        return (mesh.get(axis, 1) - 1) / mesh.get(axis, 1)
    return {('copy', 'host'): 2 * micro_batches * device.layer_runs * kept if layout.remat == 'offload' else 0,
            ('all-gather', 'fsdp'): micro_batches * 2 * weights * share('fsdp'),
            ('reduce-scatter', 'fsdp'): micro_batches * weights * share('fsdp'),
            ('all-reduce', 'data'): 2 * reduced * share('data'),
            # in each pass before two products and after two; their inputs once more for the gradients of weights
            ('all-gather', 'tensor'): 2 * (passes + 1) * streams * share('tensor'),
            ('reduce-scatter', 'tensor'): 2 * passes * streams * share('tensor'),
            ('collective-permute', 'stage'): 2 * micro_batches * device.turns * kept * (layout.stages > 1),
            ('all-gather', 'context'): micro_batches * device.layer_runs * keys * passes,
            ('ragged-all-to-all', 'expert'): micro_batches * routed * share('expert')}
