"""Layers run one after the other: what repeats in a scan, what stands before and after it by itself."""
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Outputs(NamedTuple):
    """What layers give beside x: their caches, the experts' measurements, captured activations by name.

    Arrays have a row for each layer that gives one, in order: experts measure only where there are some.
    """

    cache: Any
    auxiliary: dict
    captured: dict


def run(step, x, rows, owners, *, count, lead, period, unroll):
    """Returns (x, Outputs of dicts) of `count` layers: `lead` of them, then a scan of repeats of `period`, then a rest.

    step(x, number, {name: row}, in_loop) -> (x, Outputs of dicts) runs one layer with its rows. rows: {name: tree of
    arrays [n ...]} with a row for each of n layers, whose numbers are owners[name]. unroll: repeats in an iteration.
    """
    repeats = (count - lead) // period
    end = lead + repeats * period
    inside = {name: _between(numbers, lead, lead + period) for name, numbers in owners.items()}

    def one_by_one(x, numbers):
        outputs = []
        for number in numbers:
            x, out = step(x, number, _own(rows, owners, number), False)
            outputs.append(jax.tree.map(lambda new: new[None], out))
        return x, outputs

    def repeat(x, rows):
        if period == 1:
            return step(x, lead, rows, unroll == 1)
        outputs = []
        for number in range(lead, lead + period):
            x, out = step(x, number, _own(rows, inside, number), unroll == 1)
            outputs.append(out)
        return x, _joined(jnp.stack, outputs)

    def cut(name):
        first, last = (sum(number < limit for number in owners[name]) for limit in (lead, end))
        part = jax.tree.map(lambda a: a if (first, last) == (0, len(a)) else a[first:last], rows[name])
        return part if period == 1 else jax.tree.map(lambda a: a.reshape(repeats, -1, *a.shape[1:]), part)
    x, outputs = one_by_one(x, range(lead))
    if repeats:
        x, out = jax.lax.scan(repeat, x, {name: cut(name) for name in rows if inside[name]}, unroll=unroll)
        outputs.append(out if period == 1 else jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), out))
    x, after = one_by_one(x, range(end, count))
    return x, _joined(jnp.concatenate, outputs + after)


def _between(numbers, start, stop):
    return [number for number in numbers if start <= number < stop]


def _own(rows, owners, number):
    """Returns {name: row} of what a layer has a row of."""
    places = {name: numbers.index(number) for name, numbers in owners.items() if number in numbers}
    return {name: jax.tree.map(lambda a, place=place: a[place], rows[name]) for name, place in places.items()}


def _joined(join, outputs):
    """Returns Outputs of dicts as one, the arrays of each name joined over those that have it."""
    def fields(*parts):
        return {name: jax.tree.map(lambda *arrays: join(arrays), *[part[name] for part in parts if name in part])
                for name in dict.fromkeys(name for part in parts for name in part)}
    return Outputs(*map(fields, *outputs))
