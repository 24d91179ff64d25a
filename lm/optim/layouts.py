"""Leaves of a parameter tree seen as stacks of matrices, by the logical names of their axes."""
import dataclasses

import jax

STACKED = ('layers', 'experts')  # one matrix for each entry of these axes
TABLES = ('vocab', 'position')  # the rows of one matrix get gradients unevenly, rare ones hardly any


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a leaf is seen as a stack of matrices.

    `inner` and `outer` are the axis numbers of a matrix's rows and columns; the axes in neither are stacked. A vector,
    or a stack of vectors, has no `inner` axes. `names` are the logical names of all axes, or None where not known.
    """

    names: tuple | None
    inner: tuple
    outer: tuple

    @property
    def matrix(self):
        """Returns whether the leaf holds matrices rather than vectors."""
        return bool(self.inner)

    @property
    def table(self):
        """Returns whether one axis counts the vocabulary or positions, as in an embedding or the output."""
        return any(_base(name) in TABLES for name in self.names or ())


def _base(name):
    return name.split('.')[0] if name else name


def layout(leaf, names=None):
    """Returns the Layout of a leaf with logical axis `names`.

    The 'embed' axis is one side of the matrix and all others the other: [L D N H] is L matrices [D, N H], and out
    [L N H D] is L matrices [N H, D]. Without one the first axis is one side. 'head_dim' belongs to the axis before it,
    so that a bias [L N H] is a vector. Without names all axes but the last are the rows, and there is no stack.
    """
    if names is None:
        axes = tuple(range(leaf.ndim))
        return Layout(None, axes[:-1], axes[-1:])
    if len(names) != leaf.ndim:
        raise ValueError(f'axes={names} do not name the {leaf.ndim} axes of shape {leaf.shape}.')
    axes = [axis for axis in range(leaf.ndim) if _base(names[axis]) not in STACKED]
    embeds = [axis for axis in axes if _base(names[axis]) == 'embed']
    side = tuple(embeds[:1] or _first(axes, names))
    rest = tuple(axis for axis in axes if axis not in side)
    if not rest:
        return Layout(names, (), side)
    return Layout(names, rest, side) if side[0] > rest[-1] else Layout(names, side, rest)


def _first(axes, names):
    return axes[:2] if len(axes) > 1 and _base(names[axes[1]]) == 'head_dim' else axes[:1]


def of(params, axes=None):
    """Returns the tree of Layouts of `params`; `axes` is the tree of their logical axis names, where they are known."""
    return jax.tree.map(layout, params) if axes is None else jax.tree.map(layout, params, axes)
