"""Functions over parameter trees: leaf names and their order, masks by regex, parts, counts, norms and checksums.

A parameter tree is a nested dict of arrays. The name of a leaf is its keys joined by slashes, as in
'blocks/attention/query'. A regex matches a name where `re.search` finds it anywhere in the name: 'norm' matches every
norm, '^embed/' one branch and '/scale$' one kind of leaf.
"""
import difflib
import math
import re

import jax
import jax.extend
import jax.numpy as jnp

from lm import config


def names(tree):
    """Returns the same tree with each leaf replaced by its name, e.g. 'blocks/attention/query'."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'), tree)


def flatten(tree):
    """Returns {name: leaf} in the order of the tree's leaves."""
    return dict(zip(jax.tree.leaves(names(tree)), jax.tree.leaves(tree), strict=True))


def by_use(function, params, *given):
    """Returns the names of the leaves of params in the order in which function(params, *given) first reads them.

    Leaves that are read inside a scan, a jit or the like come in its own order; those that are never read come last.
    """
    jaxpr = jax.make_jaxpr(function)(params, *given).jaxpr
    known = dict(zip(jaxpr.invars, flatten(params)))
    return list(dict.fromkeys([*_reads(jaxpr, known), *flatten(params)]))


def _reads(jaxpr, known):
    """Yields the names of the variables in `known`, {variable: name}, in the order of the equations that read them.

    One that has nothing else for an operand, as a transpose, only makes ready what another reads; so does a call in
    which nothing is read.
    """
    for equation in jaxpr.eqns:
        named = [known.get(v) if isinstance(v, jax.extend.core.Var) else None for v in equation.invars]
        inner = [found for value in equation.params.values()
                 if len(getattr(found := getattr(value, 'jaxpr', value), 'invars', ())) == len(named) and any(named)]
        read = [found for each in inner
                for found in _reads(each, {v: name for v, name in zip(each.invars, named) if name})]
        if len(named) == 1 and not read:
            known = {**known, equation.outvars[0]: named[0]}
        else:
            yield from read
            yield from filter(None, named)


def pattern(regex):
    """Returns the compiled regex; raises config.Error when it is not one."""
    try:
        return re.compile(regex)
    except re.error as error:
        raise config.Error(f'regex {regex!r} is not valid: {error}; try {re.escape(regex)!r}.') from error


def mask(tree, regex):
    """Returns the same tree of bools: whether `re.search` finds the regex in the leaf's name.

    Raises config.Error, with the nearest names, when no leaf matches.
    """
    search = pattern(regex).search
    found = jax.tree.map(lambda name: search(name) is not None, names(tree))
    if not any(jax.tree.leaves(found)):
        known = list(flatten(tree))
        raise config.Error(f'regex {regex!r} matches none of the {len(known)} parameters; '
                           f'try {", ".join(_nearest(regex, known))}.')
    return found


def _nearest(regex, known):
    """Returns the three names of which the whole or one key is most like the regex, best first."""
    def likeness(name):
        return max(difflib.SequenceMatcher(None, regex, part).ratio() for part in (name, *name.split('/')))
    return sorted(known, key=likeness, reverse=True)[:3]


def select(tree, chosen):
    """Returns the leaves of a nested dict where `chosen`, a tree of bools, is true, without empty branches."""
    part = {key: select(branch, chosen[key]) if isinstance(branch, dict) else branch
            for key, branch in tree.items() if isinstance(branch, dict) or chosen[key]}
    return {key: branch for key, branch in part.items() if not (isinstance(branch, dict) and not branch)}


def merge(tree, part):
    """Returns `tree` with the leaves that `part`, a tree of some of its leaves, has in place of its own."""
    return {key: branch if key not in part else merge(branch, part[key]) if isinstance(branch, dict) else part[key]
            for key, branch in tree.items()}


def restrict(tree, part):
    """Returns the leaves of `tree` that `part`, a tree of some of its leaves, has too."""
    return {key: restrict(tree[key], branch) if isinstance(branch, dict) else tree[key] for key, branch in part.items()}


def copy(tree):
    """Returns the same tree in buffers of its own, so that one of the two can be donated."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)


def count(tree):
    """Returns the number of values in a tree of arrays or abstract arrays."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def bytes(tree):
    """Returns the size in bytes of a tree of arrays or abstract arrays."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def norm(tree):
    """Returns the l2 norm over all leaves together, a float32 scalar; 0 for an empty tree."""
    squares = [jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, start=jnp.float32(0)))


def checksums(tree):
    """Returns the same tree with each leaf's bits summed up in a uint32, the same on every mesh.

    Every value is scrambled with its place before it is added, modulo 2**32, where the order of a sum does not matter.
    """
    def checksum(x):
        bits = jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}') if x.dtype != bool else x
        sizes = [jnp.uint32(math.prod(x.shape[axis + 1:]) % 2 ** 32) for axis in range(x.ndim)]
        place = sum((jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * size for axis, size in enumerate(sizes)),
                    start=jnp.uint32(0))
        word = (bits.astype(jnp.uint32) ^ place * jnp.uint32(0x9E3779B9)) * jnp.uint32(0x85EBCA6B)
        return jnp.sum((word ^ word >> 16) * jnp.uint32(0xC2B2AE35), dtype=jnp.uint32)
    return jax.tree.map(checksum, tree)


def off(number):
    """Returns whether a field's number is known to be zero; one that differs between trials in one program never is."""
    return not isinstance(number, jax.core.Tracer) and not number
