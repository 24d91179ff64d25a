"""What a step does to each layer's tensors: norms and checksums of gradients, weights and updates."""
import math
import re

import jax
import jax.numpy as jnp

from lm import train, trees
from lm.debug.reading_order import reading_order


def names_as_read(settings, program):
    """Returns the names of a model's parameters in the order it reads them, and of those that hold all layers."""
    params = program.abstract.params
    with jax.set_mesh(program.mesh):
        order = reading_order(train.parts(settings).loss, params, settings.data.example())
    axes = jax.tree.leaves(settings.model.axes(), is_leaf=lambda node: isinstance(node, tuple))
    layered = {name for name, names in zip(trees.flatten(params), axes, strict=True) if names[:1] == ('layers',)}
    return order, [name for name in order if name in layered]


def layer_stats(settings, program, state, batch):
    """Returns what a step does to each layer's tensors, from the State before it, which stays as it is.

    A list of {'name', 'layer', 'gradient', 'weight', 'update', 'ratio', 'bits'} in the order in which the model reads
    them: norms of the gradient before clipping, of the parameters and of what is added to them, the last over the
    second, and the checksums of all three. An array that stacks layers has one row for each, 'layer' its number in the
    stack; 'layer' is null for others.
    """
    order, stacked = names_as_read(settings, program)
    parts = train.parts(settings)

    def sized(name, x):
        def one(x):
            return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)))), trees.checksums(x)
        return jax.vmap(one)(x) if name in stacked else one(x)

    def measure(state, batch):
        grads, _ = parts.gradient(state, batch)
        updates, _ = parts.optimizer.update(grads, state.optimizer, state.params)
        return [{name: sized(name, x) for name, x in trees.flatten(tree).items()}
                for tree in (grads, state.params, updates)]
    whole = jax.sharding.NamedSharding(program.mesh, jax.sharding.PartitionSpec())
    with jax.set_mesh(program.mesh):
        measured = jax.device_get(jax.jit(measure, out_shardings=whole)(state, batch))
    rows = []
    for name in order:
        if name not in stacked:
            rows.append(_row(name, None, [kind[name] for kind in measured]))
        elif name == (together := of_one_stack(name, stacked))[0]:
            rows += [_row(other, layer, [(kind[other][0][layer], kind[other][1][layer]) for kind in measured])
                     for layer in range(len(measured[0][name][0])) for other in together]
    return rows


def of_one_stack(name, stacked):
    """Returns those of the names `stacked` that are in the stack of one of them: 'blocks', 'decoder/blocks_1'."""
    def stack(name):
        return re.match(r'.*?blocks(_\d+)?/', name)[0]
    return [other for other in stacked if stack(other) == stack(name)]


def _row(name, layer, measured):
    gradient, weight, update = (float(norm) for norm, _ in measured)
    return {'name': name, 'layer': layer, 'gradient': gradient, 'weight': weight, 'update': update,
            'ratio': update / weight if weight else None, 'bits': [int(bits) for _, bits in measured]}


def title(row):
    """Returns the name of a row of `layer_stats`."""
    return row['name'] if row['layer'] is None else f'{row["name"]}, layer {row["layer"]}'


def largest(rows):
    """Returns the lines that name the tensors with the largest gradient and with the largest update over weight."""
    lines = []
    for what, key in (('largest gradient', 'gradient'), ('largest update over weight', 'ratio')):
        known = [row for row in rows if row[key] is not None]
        row = max(known, key=lambda row: row[key] if math.isfinite(row[key]) else math.inf)
        lines.append(f'{what}: {row[key]:.4g} in {title(row)}')
    return lines


def first_difference(a, b):
    """Returns the words for the first tensor in which two records of one step, by any code, differ, or None."""
    if a['passages'] != b['passages']:
        return 'the batch'
    for place, what in ((1, 'weight'), (0, 'gradient'), (2, 'update')):
        for x, y in zip(a['layers'], b['layers']):
            if (x['name'], x['bits'][place]) != (y['name'], y['bits'][place]):
                norms = ['not finite' if row[what] is None else f'{row[what]:.9g}' for row in (x, y)]
                return f'{what} {title(x)}: of norm {norms[0]} in A, {norms[1]} in B'
    return None
