"""The block stack: a Layer is a value, a Stack repeats a pattern of them over its depth. x [B T D] -> x."""
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
from flax.errors import NameInUseError
from jax.ad_checkpoint import checkpoint_name

from lm import config
from lm.models import scan
from lm.models.residuals import PreNorm, Residual
from lm.models.scan import Outputs
from lm.nn import memory
from lm.nn.context import Context, Execution
from lm.nn.dropout import dropout
from lm.nn.experts import Experts
from lm.nn.layers import MLP, Attention, FeedForward
from lm.nn.norms import Norm, RMSNorm
from lm.nn.taps import Tap
from lm.nn.weights import apply, declare, normal, repeated
from lm.parallel import pipeline, sharding

EVERY = 'every'  # beside the names of stacks: what each layer has


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


def refuse_experts(model, layers):
    """Raises config.Error where one of its layers has experts, for a model that neither adds their losses nor moves
    their biases.
    """
    if any(isinstance(layer.mlp, Experts) for layer in layers):
        raise config.Error(f'{type(model).__name__} trains no experts; try mlp=MLP.')


@dataclass(frozen=True)
class Stack:
    """`depth` layers that repeat a pattern: a scan over its repeats, layers of one pattern static inside.

    Weights of layers that agree in their names and shapes are stacked [L ...], see `stacks`. Of a pattern that names
    all layers, what it repeats itself is scanned.
    """

    pattern: tuple[Layer, ...]
    depth: int

    def layer(self, number):
        """Returns the Layer at a depth, from 0."""
        return self.pattern[number % len(self.pattern)]

    def stacks(self, width):
        """Returns {name: numbers of layers} of those whose weights are stacked, as they agree in names and shapes.

        All layers are 'blocks' where all agree; else those that agree with the first are, and the next are 'blocks_1',
        'blocks_2' and so on, in the order in which they come.
        """
        kinds = self._kinds()
        shapes = {kind: jax.eval_shape(partial(self._declare, self.pattern[kind], 1, 'blocks', width=width),
                                       jax.random.key(0)) for kind in set(kinds)} if len(set(kinds)) > 1 else {}
        stacks = []
        for number in range(self.depth):
            shape = shapes.get(kinds[number % len(kinds)])
            members = next((members for other, members in stacks if other == shape), None)
            if members is None:
                stacks.append((shape, members := []))
            members.append(number)
        return {f'blocks_{i}' if i else 'blocks': members for i, (_, members) in enumerate(stacks)}

    def _kinds(self):
        """Returns for each layer of the pattern that is used the number of the first that is equal."""
        kinds = []
        for number, layer in enumerate(self.pattern[:self.depth]):
            kinds.append(next((kind for kind in dict.fromkeys(kinds) if _alike(self.pattern[kind], layer)), number))
        return kinds

    def declare(self, key, width):
        """Returns the parameters as Weights: those of `stacks`, and what positions share between layers."""
        try:
            tables = declare(self._tables, jax.random.fold_in(key, self.depth))
        except NameInUseError as error:
            raise config.Error('positions of one pattern declare parameters of the same name; '
                               'give its layers equal positions.') from error
        for name, numbers in self.stacks(width).items():
            tables |= self._declare(self.layer(numbers[0]), len(numbers), name, key, width=width)
        return tables

    def _declare(self, layer, count, name, key, *, width):
        """Returns {name: the Weights [count ...] of so many layers}."""
        x, context = jnp.zeros((1, 1, width)), Context(jnp.zeros((1, 1), jnp.int32), rows=jnp.zeros(1, jnp.int32))
        function = partial(layer, tap=Tap(), execution=Execution(), depth=self.depth)
        return declare(lambda _, *args: repeated(function, count, name)(*args), key, x, context._replace(memory=x))

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
        """Returns an empty cache, what the attention of all layers keeps, [L B S ...]; {stack: cache} of several."""
        def empty(numbers):
            one = self.layer(numbers[0]).cache(width, batch, slots, dtype)
            return jax.tree.map(lambda x: jnp.zeros((len(numbers), *x.shape), x.dtype), one)
        return _bare({name: empty(numbers) for name, numbers in self.stacks(width).items()})

    def __call__(self, params, x, context, execution, *, cache=None, capture=(), edits=None):
        """Returns (x [B T D], Outputs of the layers, its arrays [L ...]), the cache as of `cache`.

        capture: names of activations to return; a layer names 'attention', 'cross' and 'mlp', what each adds, and the
        'residual' stream after it. edits: {name: (mask, value)} [L ...], see taps.Tap.
        """
        tables = apply(self._tables, params)
        angles = self._shared(lambda attention: attention.turning(attention.head_size(x.shape[-1])),
                              lambda position, size: position.angles(context.positions, size))
        keys = None if context.key is None else jax.random.split(context.key, self.depth)
        stacks = self.stacks(x.shape[-1])
        caches = cache if cache is not None and len(stacks) > 1 else dict.fromkeys(stacks, cache)
        rows = {name: (params[name], caches[name]) for name in stacks} | {EVERY: (keys, edits)}
        fixed = context._replace(key=None), angles
        run = partial(self._run, tables=tables, execution=execution, capture=capture)
        if pipeline.stages() == 1 or cache is not None or capture or edits:
            x, outputs = run(rows, x, *fixed, owners=stacks | {EVERY: range(self.depth)})
        else:
            x, outputs = self._pipelined(run, rows, x, fixed, execution.pipeline)
        return x, outputs._replace(cache=_bare(outputs.cache))

    def _run(self, rows, x, context, angles, *, tables, execution, capture, owners=None):
        """Returns (x, Outputs of dicts) of the layers whose {stack: (parameters, cache)} and EVERY: (key, edits) are
        given; owners: of those rows, see scan.run, None for as many whole patterns as there are.
        """
        count = len(jax.tree.leaves(rows)[0]) if owners is None else self.depth
        lead, period = self._repetition() if owners else (0, len(self.pattern))
        unroll = self._unroll(execution, (count - lead) // period)

        def step(x, number, own, in_loop):
            number %= len(self.pattern)
            step = partial(self._step, self.pattern[number], execution=execution, capture=capture)
            step = memory.rematerialise(step, execution.remat, in_loop)
            return step(x, own, context._replace(angles=angles[number], table=tables[number]))
        owners = owners or dict.fromkeys(rows, range(count))
        return scan.run(step, x, rows, owners, count=count, lead=lead, period=period, unroll=unroll)

    def _repetition(self):
        """Returns (how many layers stand before those that repeat, how many repeat) of a pattern."""
        kinds = self._kinds()
        size = len(kinds)
        if size < self.depth:
            return 0, size
        return min(((lead, period) for lead in range(size) for period in range(1, size - lead + 1)
                    if kinds[lead + period:] == kinds[lead:size - period]), key=sum)

    def _step(self, layer, x, own, context, *, execution, capture):
        """Returns (x, Outputs of dicts) of one layer with its own rows."""
        (key, edits), ((name, (params, cache)),) = own[EVERY], [item for item in own.items() if item[0] != EVERY]
        tap = Tap(capture, edits)
        function = partial(layer, tap=tap, execution=execution, depth=self.depth)
        x, (cache, auxiliary) = apply(function, params, x, context._replace(key=key, cache=cache))
        return x, Outputs({name: cache}, auxiliary, tap.captured)

    def _unroll(self, execution, repeats):
        """Returns how many repeats one iteration of the scan holds.

        A CPU that recomputes nothing holds all: a loop keeps XLA from working on copies and layers together there, and
        XLA merges what is recomputed outside of one.
        """
        default = repeats if sharding.platform() == 'cpu' and execution.remat == 'none' else 1
        return min(execution.unroll, repeats) or default or 1

    def _pipelined(self, run, rows, x, inputs, schedule):
        """Returns what `run` does over the stages of the mesh."""
        if len(rows) > 2:
            raise config.Error('layers of unlike weights do not go over stages; try a mesh without stage.')
        if self.depth // (pipeline.stages() * schedule.repeats) % len(self.pattern):
            raise config.Error(f'{self.depth} layers over mesh.stage={pipeline.stages()} cut a pattern of '
                               f'{len(self.pattern)}; try as many layers a stage as the pattern has, or a multiple.')
        leaves, tree = jax.tree.flatten(inputs)
        split = [len(leaf) == len(x) for leaf in leaves]
        of_rows = [leaf for leaf, rowwise in zip(leaves, split, strict=True) if rowwise]

        def run_stage(own, x, of_rows):
            """Runs the layers of a stage on a micro-batch: what has the batch's rows is cut as x is."""
            some = iter(of_rows)
            return run(own, x, *jax.tree.unflatten(tree, [next(some) if rowwise else leaf
                                                          for leaf, rowwise in zip(leaves, split, strict=True)]))
        x, outputs = pipeline.run(run_stage, schedule, rows, x, of_rows)
        return sharding.constrain(x, 'rows', 'stream', None), outputs


def _bare(of_stacks):
    """Returns the value of the one stack there is, or {stack: value} of several."""
    return of_stacks if len(of_stacks) > 1 else next(iter(of_stacks.values()))


def _alike(one, other):
    """Returns whether two layers are known to be equal."""
    try:
        return one == other
    except jax.errors.TracerBoolConversionError:  # a sweep traces a number of one
        return False
