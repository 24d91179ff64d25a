"""The block stack: a Layer is a value, a Stack repeats a pattern of them over its depth. x [B T D] -> x."""
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.errors import NameInUseError
from jax.ad_checkpoint import checkpoint_name

from lm import config
from lm.models.residuals import PreNorm, Residual
from lm.nn import memory
from lm.nn.context import Context, Execution
from lm.nn.dropout import dropout
from lm.nn.layers import MLP, Attention, FeedForward
from lm.nn.norms import Norm, RMSNorm
from lm.nn.taps import Tap
from lm.nn.weights import apply, declare, normal, repeated
from lm.parallel import pipeline, sharding


@dataclass(frozen=True)
class Layer:
    """One layer: attention, cross attention to a memory if any, and an MLP or another FeedForward.

    parallel: attention and MLP read the same input. dropout: on what each sublayer adds.
    """

    attention: Attention = field(default_factory=Attention)
    mlp: FeedForward = field(default_factory=MLP)
    cross: Attention | None = None
    norm: Norm = field(default_factory=RMSNorm)
    residual: Residual = field(default_factory=PreNorm)
    parallel: bool = False
    dropout: config.FractionBelowOne = 0.0

    def __post_init__(self):
        config.check(self)
        if self.parallel and (self.residual.normalised or self.cross):
            raise config.Error('parallel=true adds both sublayers to one input, unlike PostNorm and cross attention; '
                               'try residual=PreNorm or parallel=false.')

    def cache(self, width, batch, slots, dtype):
        """Returns its empty cache, with that of cross attention, which the memory's keys and values will be, if any."""
        own = self.attention.cache(width, batch, slots, dtype)
        return (own, None) if self.cross else own

    def norm_of(self, name):
        """Returns the Norm of a sublayer, 'attention', 'cross' or 'mlp': here the same for all."""
        return self.norm

    def flops(self, width, length):
        """Returns the FLOPs of one token's forward pass in a row of `length`."""
        attentions = [attention for attention in (self.attention, self.cross) if attention]
        return sum(attention.flops(width, length) for attention in attentions) + self.mlp.flops(width)

    def __call__(self, scope, x, context, *, tap, execution, depth):
        """Returns (x [B T D], (cache, auxiliary outputs of the experts)) after this layer, one of `depth`."""
        x = checkpoint_name(x, memory.LAYER_INPUT)
        keys = (None,) * 2 if context.key is None else jax.random.split(context.key)
        fixed = {'execution': execution, 'init': normal(0.02 / (2 * depth) ** 0.5)}

        def attend(attention, name, context):
            return lambda x, norm: attention(x, norm, context, name=name, **fixed)

        def add(stream, name, sublayer, source, key):
            def norm(suffix):
                return self.norm_of(name).bind(scope, f'{name}_{suffix}', x.shape[-1])
            y, extra = self.residual.branch(sublayer, source, norm)
            y = tap(name, dropout(y, self.dropout, key, context.rows, context.zigzag))
            return self.residual.join(stream, y, norm), extra
        cache, known = context.cache if self.cross and context.cache else (context.cache, None)
        own = attend(self.attention, 'attention', context._replace(memory=None, cache=cache))
        middle, cache = add(x, 'attention', own, x, keys[0])
        if self.cross:
            source = known if context.memory is None else context.memory
            across = attend(self.cross, 'cross', context._replace(memory=source, cache=None, index=None, angles=None,
                                                                  table=None))
            key = None if context.key is None else jax.random.fold_in(context.key, 2)  # beside the two of keys
            middle, known = add(middle, 'cross', across, middle, key)
            cache = None if context.cache is None else (cache, known)

        def feed(x, norm):
            return self.mlp(x, norm, context, **fixed)
        x, auxiliary = add(middle, 'mlp', feed, x if self.parallel else middle, keys[1])
        return sharding.constrain(tap('residual', x), 'batch', 'stream', None), (cache, auxiliary)


class Outputs(NamedTuple):
    """What layers give beside x: their caches, the experts' measurements, captured activations by name."""

    cache: Any
    auxiliary: dict
    captured: dict


@dataclass(frozen=True)
class Stack:
    """`depth` layers that repeat a pattern: a scan over its repeats, layers of one pattern static inside.

    Layers of a pattern may differ in all but the names and shapes of their weights, which are stacked [L ...]. Of a
    pattern that names all layers, what it repeats itself is scanned.
    """

    pattern: tuple[Layer, ...]
    depth: int

    def layer(self, number):
        """Returns the Layer at a depth, from 0."""
        return self.pattern[number % len(self.pattern)]

    def declare(self, key, width):
        """Returns the parameters as Weights: {'blocks': [L ...]} and what positions share between layers."""
        x, context = jnp.zeros((1, 1, width)), Context(jnp.zeros((1, 1), jnp.int32), rows=jnp.zeros(1, jnp.int32))
        context = context._replace(memory=x)

        def blocks(layer):
            function = partial(layer, tap=Tap(), execution=Execution(), depth=self.depth)
            return declare(lambda _, *args: repeated(function, self.depth, 'blocks')(*args), key, x, context)
        # Not of the set of distinct layers: a sweep may trace their dropout, and a tracer has no hash.
        shapes = [jax.eval_shape(partial(blocks, layer)) for layer in self.pattern] if len(self.pattern) > 1 else []
        if any(other != shapes[0] for other in shapes):
            raise config.Error('layers of one pattern differ in the shapes of their weights; give them equal sizes, '
                               'norms, biases and MLPs.')
        try:
            tables = declare(self._tables, jax.random.fold_in(key, self.depth))
        except NameInUseError as error:
            raise config.Error('positions of one pattern declare parameters of the same name; '
                               'give its layers equal positions.') from error
        return {**tables, **blocks(self.pattern[0])}

    def _tables(self, scope):
        """Returns the table of its position for each layer of the pattern, shared by those with as many heads."""
        return self._shared(lambda attention: attention.heads, lambda position, heads: position.table(scope, heads))

    def _shared(self, size, make):
        """Returns make(position, size(attention)) for each layer of the pattern, called once for equal arguments."""
        cases = [(layer.attention.position, size(layer.attention)) for layer in self.pattern]
        firsts = [cases.index(case) for case in cases]  # not by hash: a sweep may trace a number of a position
        made = {first: make(*cases[first]) for first in dict.fromkeys(firsts)}
        return [made[first] for first in firsts]

    def flops(self, width, length):
        """Returns the FLOPs of one token's forward pass in a row of `length`."""
        return sum(self.layer(number).flops(width, length) for number in range(self.depth))

    def cache(self, width, batch, slots, dtype):
        """Returns an empty cache, keys and values of all layers, each [L B S K H]."""
        one = self.pattern[0].cache(width, batch, slots, dtype)
        return jax.tree.map(lambda x: jnp.zeros((self.depth, *x.shape), x.dtype), one)

    def __call__(self, params, x, context, execution, *, cache=None, capture=(), edits=None):
        """Returns (x [B T D], outputs of the layers, an Outputs of arrays [L ...]).

        capture: names of activations to return; a layer names 'attention', 'cross' and 'mlp', what each adds, and the
        'residual' stream after it. edits: {name: (mask, value)} [L ...], see taps.Tap.
        """
        tables = apply(self._tables, params)
        angles = self._shared(lambda attention: attention.head_size(x.shape[-1]),
                              lambda position, size: position.angles(context.positions, size))
        keys = None if context.key is None else jax.random.split(context.key, self.depth)
        layers = params['blocks'], keys, cache, edits
        rows = context._replace(key=None), angles
        run = partial(self._run, tables=tables, execution=execution, capture=capture)
        if pipeline.stages() == 1 or cache is not None or capture or edits:
            return run(layers, x, *rows)
        return self._pipelined(run, layers, x, rows, execution.pipeline)

    def _run(self, layers, x, context, angles, *, tables, execution, capture):
        """Returns (x, Outputs) of the layers [L ...] whose (parameters, key, cache, edits) are given."""
        count = len(jax.tree.leaves(layers)[0])
        lead, period = self._repetition() if count == self.depth else (0, len(self.pattern))
        repeats, rest = divmod(count - lead, period)
        unroll = self._unroll(execution, repeats)

        def run_layer(x, number, own, in_loop=unroll == 1):
            number %= len(self.pattern)
            step = partial(self._step, self.pattern[number], execution=execution, capture=capture)
            step = memory.rematerialise(step, execution.remat, in_loop)
            return step(x, own, context._replace(angles=angles[number], table=tables[number]))

        def run_each(x, numbers):
            parts = []
            for number in numbers:
                x, out = run_layer(x, number, jax.tree.map(lambda a, number=number: a[number], layers), False)
                parts.append(jax.tree.map(lambda new: new[None], out))
            return x, parts

        def repeat(x, layers):
            if period == 1:
                return run_layer(x, lead, layers)
            outputs = []
            for number in range(period):
                x, out = run_layer(x, lead + number, jax.tree.map(lambda a, number=number: a[number], layers))
                outputs.append(out)
            return x, jax.tree.map(lambda *arrays: jnp.stack(arrays), *outputs)
        x, before = run_each(x, range(lead))
        whole = jax.tree.map(lambda a: a[lead:lead + repeats * period], layers) if lead or rest else layers
        if period > 1:
            whole = jax.tree.map(lambda a: a.reshape(repeats, period, *a.shape[1:]), whole)
        x, outputs = jax.lax.scan(repeat, x, whole, unroll=unroll)
        if period > 1:
            outputs = jax.tree.map(lambda a: a.reshape(repeats * period, *a.shape[2:]), outputs)
        x, after = run_each(x, range(count - rest, count))
        return x, jax.tree.map(lambda *arrays: jnp.concatenate(arrays) if lead or rest else arrays[0],
                               *before, outputs, *after)

    def _repetition(self):
        """Returns (how many layers stand before those that repeat, how many repeat) of a pattern."""
        size = len(self.pattern)
        if size < self.depth:
            return 0, size
        return min(((lead, period) for lead in range(size) for period in range(1, size - lead + 1)
                    if all(map(_alike, self.pattern[lead + period:], self.pattern[lead:]))), key=sum)

    def _step(self, layer, x, own, context, *, execution, capture):
        """Returns (x, Outputs) of one layer with its own (parameters, key, cache, edits)."""
        params, key, cache, edits = own
        tap = Tap(capture, edits)
        function = partial(layer, tap=tap, execution=execution, depth=self.depth)
        x, (cache, auxiliary) = apply(function, params, x, context._replace(key=key, cache=cache))
        return x, Outputs(cache, auxiliary, tap.captured)

    def _unroll(self, execution, repeats):
        """Returns how many repeats one iteration of the scan holds.

        A CPU that recomputes nothing holds all: a loop keeps XLA from working on copies and layers together there, and
        XLA merges what is recomputed outside of one.
        """
        default = repeats if sharding.platform() == 'cpu' and execution.remat == 'none' else 1
        return min(execution.unroll, repeats) or default or 1

    def _pipelined(self, run, layers, x, inputs, schedule):
        """Returns what `run` does over the stages of the mesh."""
        if self.depth // (pipeline.stages() * schedule.repeats) % len(self.pattern):
            raise config.Error(f'{self.depth} layers over mesh.stage={pipeline.stages()} cut a pattern of '
                               f'{len(self.pattern)}; try as many layers a stage as the pattern has, or a multiple.')
        leaves, tree = jax.tree.flatten(inputs)
        split = [len(leaf) == len(x) for leaf in leaves]
        rows = [leaf for leaf, rowwise in zip(leaves, split, strict=True) if rowwise]

        def run_stage(own, x, rows):
            """Runs the layers of a stage on a micro-batch: what has the batch's rows is cut as x is."""
            some = iter(rows)
            return run(own, x, *jax.tree.unflatten(tree, [next(some) if rowwise else leaf
                                                          for leaf, rowwise in zip(leaves, split, strict=True)]))
        x, outputs = pipeline.run(run_stage, schedule, layers, x, rows)
        return sharding.constrain(x, 'rows', 'stream', None), outputs


def _alike(one, other):
    """Returns whether two layers are known to be equal."""
    try:
        return one == other
    except jax.errors.TracerBoolConversionError:  # a sweep traces a number of one
        return False
