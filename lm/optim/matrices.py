"""Leaves of a parameter tree seen as stacks of matrices, by the logical names of their axes."""
import dataclasses
import math

import jax

STACKED = ('layers', 'experts')  # one matrix for each entry of these axes
TABLES = ('vocab', 'position')  # the rows of one matrix get gradients unevenly, rare ones hardly any


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a leaf is seen as a stack of matrices.

    `inner` and `outer` are the axis numbers of a matrix's rows and columns; the axes in neither are stacked. A vector,
    or a stack of vectors, has no `inner` axes. `names` are the logical names of all axes, or None where not known.
    `shape` and `tuned` are this leaf's and that of the same leaf in the model whose learning rates these are; both are
    empty where that is this model.
    """

    names: tuple | None
    inner: tuple
    outer: tuple
    shape: tuple = ()
    tuned: tuple = ()

    @property
    def matrix(self):
        """Returns whether the leaf holds matrices rather than vectors."""
        return bool(self.inner)

    @property
    def table(self):
        """Returns whether one axis counts the vocabulary or positions, as in an embedding or the output."""
        return any(_base(name) in TABLES for name in self.names or ())

    def ratio(self, law):
        """Returns law(fan_in, fan_out) here over law of the model whose rates these are; 1.0 if it is this one."""
        return law(*self._fans(self.shape)) / law(*self._fans(self.tuned)) if self.tuned else 1.0

    def _fans(self, shape):
        """Returns how many numbers each output sums, and how many outputs there are, of a leaf of this shape.

        A row of a table is looked up, which sums nothing; logits made with it are scaled by the model itself. Entries
        of a vector sum nothing either.
        """
        inner, outer = self.inner, self.outer
        if self.table:
            inner, outer = (), [axis for axis in inner + outer if _base(self.names[axis]) not in TABLES]
        return tuple(math.prod(shape[axis] for axis in axes) for axes in (inner, outer))


def initial(fan_in, fan_out):
    """Returns how the deviation of initial values goes with width: 1 / sqrt(fan_in), less where outputs are fewer.

    That is muP (Yang et al. 2022, arXiv:2203.03466) in the form of Yang et al. 2023, arXiv:2310.17813.
    """
    return min(1, fan_out / fan_in) ** 0.5 / fan_in ** 0.5


def _base(name):
    return name.split('.')[0] if name else name


def layout(leaf, names=None, tuned=None):
    """Returns the Layout of a leaf with logical axis `names`, `tuned` being the same leaf where its rate was tuned.

    The 'embed' axis is one side of the matrix and all others the other: [L D N H] is L matrices [D, N H], and out
    [L N H D] is L matrices [N H, D]. Without one the first axis is one side. 'head_dim' belongs to the axis before it,
    so that a bias [L N H] is a vector. Without names all axes but the last are the rows, and there is no stack.
    """
    shapes = () if tuned is None else (tuple(leaf.shape), tuple(tuned.shape))
    if names is None:
        axes = tuple(range(leaf.ndim))
        return Layout(None, axes[:-1], axes[-1:], *shapes)
    if len(names) != leaf.ndim:
        raise ValueError(f'axes={names} do not name the {leaf.ndim} axes of shape {leaf.shape}.')
    axes = [axis for axis in range(leaf.ndim) if _base(names[axis]) not in STACKED]
    embeds = [axis for axis in axes if _base(names[axis]) == 'embed']
    side = tuple(embeds[:1] or _first(axes, names))
    rest = tuple(axis for axis in axes if axis not in side)
    if not rest:
        return Layout(names, (), side, *shapes)
    return Layout(names, *((rest, side) if side[0] > rest[-1] else (side, rest)), *shapes)


def _first(axes, names):
    return axes[:2] if len(axes) > 1 and _base(names[axes[1]]) == 'head_dim' else axes[:1]


def of(params, axes=None, tuned=None):
    """Returns the tree of Layouts of `params`; `axes` is the tree of their logical axis names, where they are known.

    `tuned` is the tree of the same parameters, abstract ones will do, in the model whose learning rates these are; it
    goes with axes alone.
    """
    known = [tree for tree in (axes, tuned) if tree is not None]
    return jax.tree.map(layout, params, *(known if axes is not None else ()))
