"""What a step keeps in memory: rematerialisation policies, the chunked MLP, late recomputation."""
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from lm.config.divisors import divisors
from lm.nn.weights import project
from lm.parallel import reductions, sharding

Remat = Literal['none', 'dots', 'full', 'offload']
LAYER_INPUT = 'layer_input'  # the name of a layer's input, for 'offload' to find
FULL_REMAT = ('full', 'offload')  # policies that save only the layer's input
POLICIES = {
    'full': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    'offload': jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[], names_which_can_be_offloaded=[LAYER_INPUT], offload_src='device',
        offload_dst='pinned_host'),
}


def rematerialise(layer, remat, in_loop):
    """Returns layer(*args) whose backward pass recomputes norms and activations alone ('none', see `keep_inputs`), all
    but products with weights ('dots'), or everything ('full'; 'offload' from inputs that wait in the host's memory).
    """
    if remat == 'none':
        return layer
    # In a rolled loop XLA cannot merge the forward pass with its recomputation; the barriers against it cost fusions.
    return jax.checkpoint(layer, prevent_cse=not in_loop, policy=POLICIES[remat])


def checkpoint_late(function):
    """Returns function(x, *args) of which only the arguments are kept, recomputed no earlier than its gradient arrives.

    `jax.checkpoint` around a whole layer recomputes all of it at the start of the layer's backward pass, where it stays
    to the end; the barrier ties this part to the cotangent.
    """
    def backward(args, g):
        x, g = jax.lax.optimization_barrier((args[0], g))
        return jax.vjp(function, x, *args[1:])[1](g)
    late = jax.custom_vjp(function)
    late.defvjp(lambda *args: (function(*args), args), backward)
    return late


def kept_late(project, remat):
    """Returns project(x, *args), what leads from the stream x into products, as this rematerialisation keeps it.

    Under full rematerialisation by `checkpoint_late`; so too where the stream is split over `tensor`, of which the
    share is then kept and gathered again for the gradient (Korthikanti et al. 2022, section 4.2.2).
    """
    split = jax.sharding.get_abstract_mesh().shape.get('tensor', 1) > 1
    return checkpoint_late(project) if split or remat in FULL_REMAT else keep_inputs(project, remat)


def keep_inputs(function, remat):
    """Returns function(*args), a norm or an activation, of which 'none' keeps the arguments and no intermediate.

    JAX would keep three arrays for a GELU and two for a norm. Where layers are unrolled, as on a CPU, XLA merges the
    recomputation with the forward pass, and it costs nothing.
    """
    return jax.checkpoint(function, prevent_cse=False) if remat == 'none' else function


def mlp_chunks(ff, width, shards):
    """Returns the number of chunks of `ff` hidden units, in each of `shards` tensor shards, under full remat.

    A chunk of width/4 makes hidden states and their gradients no larger than an input [B T D]. Under tensor parallelism
    each chunk is reduce-scattered: there a chunk is as large as the width.
    """
    most = max(1, width // 4) if shards == 1 else width
    return next(count for count in divisors(ff // shards) if ff // shards // count <= most)


def tensor_shards(ff):
    """Returns the number of tensor-parallel shards of `ff` hidden units: the size of the mesh axis, or 1."""
    size = jax.sharding.get_abstract_mesh().shape.get('tensor', 1)
    return 1 if ff % size else size


def chunked(activate, precision, count, x, parameters):
    """Returns what an MLP gives for x [B T D], its hidden units computed in `count` chunks, one after the other.

    parameters: (arrays [D F], up and gate if there is one, and down transposed; biases [F] of up and gate, or None).
    Only x is kept for the gradient, so that neither hidden states [B T F] nor a gathered matrix [D F] is ever whole.
    """
    weights, biases = parameters
    shards = tensor_shards(weights[0].shape[-1])
    interleave = partial(_interleave, shards, count)
    chunks = interleave(weights), jax.tree.map(lambda bias: interleave([bias]), biases)
    return _chunked(partial(_chunk, activate, precision, shards), x, chunks)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chunked(chunk, x, chunks):
    def add(y, part):
        return y + chunk(x, part), None
    return jax.lax.scan(add, jnp.zeros_like(x), chunks)[0]


def _chunked_backward(chunk, residuals, g):
    x, chunks = residuals

    def add(total, part):
        by_x, by_part = jax.vjp(chunk, x, part)[1](g)
        return total + sharding.constrain(by_x, 'batch', 'stream', None), by_part
    return jax.lax.scan(add, jnp.zeros_like(x), chunks)


_chunked.defvjp(lambda chunk, x, chunks: (_chunked(chunk, x, chunks), (x, chunks)), _chunked_backward)


def _chunk(activate, precision, shards, x, part):
    """One chunk of the MLP. Its matrices are one [D S*X*F], so that fsdp gathers all of them in one all-gather."""
    w, biases = part
    w = reductions.reduce_scatter_gradient(w, 'embed', 'ff')
    ins, out = _split_shards(w, shards, [len(biases) * w.shape[-1] // shards // (len(biases) + 1)])
    hidden = sharding.constrain(project('BTD,DF->BTF', x, ins, precision), 'batch', 'length', 'ff')
    hidden = _split_shards(hidden, shards, len(biases))
    hidden = [h if bias is None else h + bias for h, bias in zip(hidden, biases, strict=True)]
    return reductions.scatter_stream(project('BTF,DF->BTD', activate(*hidden), out, precision))


def _split_shards(w, shards, places):
    """Returns the arrays [... S*F] that follow one another in each of `shards` equal parts of the last axis."""
    parts = jnp.split(w.reshape(*w.shape[:-1], shards, -1), places, -1)
    return [part.reshape(*w.shape[:-1], -1) for part in parts]


def _interleave(shards, count, arrays):
    """Returns `count` chunks [count ... S*X*F] of X arrays [... F]; each tensor shard owns a slice of every chunk."""
    split = jnp.stack([w.reshape(*w.shape[:-1], shards, count, -1) for w in arrays], -2)
    parts = jnp.moveaxis(split, -3, 0)
    parts = parts.reshape(*parts.shape[:-3], -1)
    return sharding.constrain(parts, None, *('embed', 'ff')[-(parts.ndim - 1):])
