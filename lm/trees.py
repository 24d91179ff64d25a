"""Functions over parameter trees: leaf names, masks by regex, parts, counts, norms and checksums.

A parameter tree is a pytree of arrays: dicts, and any other nodes that JAX knows, such as a NamedTuple in place of a
plain weight. The name of a leaf is the keys of its path joined by slashes, as in 'blocks/attention/query' or
'blocks/attention/query/scale'. A regex matches a name where `re.search` finds it anywhere in the name: 'norm' matches
every norm, '^embed/' one branch and '/scale$' one kind of leaf.
"""
import difflib
import math
import re
import warnings

import jax
import jax.numpy as jnp

from lm import config


def names(tree, is_leaf=None):
    """Returns the same tree with each leaf replaced by its name, e.g. 'blocks/attention/query'.

    `is_leaf` tells of a node whether it counts as one leaf, as in `jax.tree.map`.
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path, simple=True, separator='/'), tree, is_leaf=is_leaf)


def flatten(tree, is_leaf=None):
    """Returns {name: leaf} in the order of the tree's leaves; `is_leaf` as in `names`."""
    return dict(zip(jax.tree.leaves(names(tree, is_leaf)), jax.tree.leaves(tree, is_leaf), strict=True))


def pattern(regex):
    """Returns the compiled regex; raises config.Error when it is not one."""
    try:
        with warnings.catch_warnings(action='ignore', category=FutureWarning):  # of '[[': a set of sets, once
            return re.compile(regex)
    except (re.error, RecursionError, OverflowError) as error:
        raise config.Error(f'regex {regex!r} is not valid: {error}; try {re.escape(regex)!r}.') from error


def mask(tree, regex):
    """Returns the same tree of bools: whether `re.search` finds the regex in the leaf's name.

    Raises config.Error, with the nearest names, when no leaf matches.
    """
    search = pattern(regex).search
    matches = jax.tree.map(lambda name: search(name) is not None, names(tree))
    if not any(jax.tree.leaves(matches)):
        known = list(flatten(tree))
        raise config.Error(f'regex {regex!r} matches none of the {len(known)} parameters; '
                           f'try {", ".join(_nearest(regex, known))}.')
    return matches


def _nearest(regex, known):
    """Returns the three names of which the whole or one key is most like the regex, best first."""
    def likeness(name):
        return max(difflib.SequenceMatcher(None, regex, part).ratio() for part in (name, *name.split('/')))
    return sorted(known, key=likeness, reverse=True)[:3]


def select(tree, chosen):
    """Returns the leaves where `chosen`, a tree of bools, is true, as nested dicts by the keys of their paths.

    Branches without a chosen leaf are left out. Any other node becomes a dict too, since it cannot lack a field:
    of Int8(values, scale) the scale alone is {'scale': ...}. Names stay as they are.
    """
    part = {}
    for (path, leaf), wanted in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(chosen), strict=True):
        if wanted:
            *branches, last = map(_key, path)
            branch = part
            for key in branches:
                branch = branch.setdefault(key, {})
            branch[last] = leaf
    return part


def _key(entry):
    """Returns the key of one entry of a path: of a dict, a field's name, or a number in a sequence."""
    return getattr(entry, 'key', getattr(entry, 'name', getattr(entry, 'idx', None)))


def merge(tree, part):
    """Returns `tree` with the leaves that `part`, some of its leaves by the same names, has in place of its own."""
    replaced = flatten(part)
    return jax.tree.map(lambda name, leaf: replaced.get(name, leaf), names(tree), tree)


def restrict(tree, part):
    """Returns `part`, some leaves of `tree` by the same names, with the values that they have in `tree`."""
    known = flatten(tree)
    return jax.tree.map(known.__getitem__, names(part))


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


def statically_zero(number):
    """Returns whether a number is known to be zero; a traced one, such as a field of trials under vmap, never is."""
    return not isinstance(number, jax.core.Tracer) and not number
