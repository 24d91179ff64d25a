"""Leaves of a parameter tree seen as stacks of matrices, by the logical names of their axes."""
import dataclasses
import math

import jax

from lm import trees

STACKED = ('layers', 'experts')  # one matrix for each entry of these axes
TABLES = ('vocab', 'position')  # the rows of one matrix get gradients unevenly, rare ones hardly any


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """A leaf seen as a stack of matrices.

    `inner` and `outer` are the axis numbers of a matrix's rows (fan-in) and columns (fan-out); all other axes are
    stacked. A vector, or a stack of vectors, has no `inner` axes. `names` are the logical names of all axes, or None
    where they are not known. `shape` is this leaf's and `base_shape` that of the same leaf in the muP base model, on
    which learning rates were tuned; both are empty where there is no other model.
    """

    names: tuple | None
    inner: tuple
    outer: tuple
    shape: tuple = ()
    base_shape: tuple = ()

    @property
    def matrix(self):
        """Returns whether the leaf holds matrices rather than vectors."""
        return bool(self.inner)

    @property
    def table(self):
        """Returns whether one axis counts the vocabulary or positions, as in an embedding or the output."""
        return any(_base(name) in TABLES for name in self.names or ())

    def width_ratio(self, law):
        """Returns law(fan_in, fan_out) of this leaf over that of the base model's; 1.0 where there is no other model.
        """
        return law(*self._fans(self.shape)) / law(*self._fans(self.base_shape)) if self.base_shape else 1.0

    def _fans(self, shape):
        """Returns (fan_in, fan_out) of a leaf of this shape: how many terms an output sums, and how many outputs.

        The fan-in is 1 for a table, whose rows are looked up (a model scales its logits itself), and for a vector.
        """
        inner, outer = self.inner, self.outer
        if self.table:
            inner, outer = (), [axis for axis in inner + outer if _base(self.names[axis]) not in TABLES]
        return tuple(math.prod(shape[axis] for axis in axes) for axes in (inner, outer))


def initial(fan_in, fan_out):
    """Returns muP's standard deviation of initial values: 1 / sqrt(fan_in), less where fan_out is smaller than fan_in.

    Source: Yang et al. 2022, arXiv:2203.03466, in the form of Yang et al. 2023, arXiv:2310.17813.
    """
    return min(1, fan_out / fan_in) ** 0.5 / fan_in ** 0.5


def _base(name):
    return name.split('.')[0] if name else name


def view(leaf, names=None, base=None):
    """Returns the MatrixView of a leaf with logical axis `names`; `base` is the same leaf in the muP base model.

    The 'embed' axis is one side of the matrix and all others the other: [L D N H] is L matrices [D, N H], and out
    [L N H D] is L matrices [N H, D]. Without one the first axis is one side. 'head_dim' belongs to the axis before it,
    so that a bias [L N H] is a vector. Without names all axes but the last are the rows, and there is no stack.
    """
    shapes = () if base is None else (tuple(leaf.shape), tuple(base.shape))
    if names is None:
        axes = tuple(range(leaf.ndim))
        return MatrixView(None, axes[:-1], axes[-1:], *shapes)
    if len(names) != leaf.ndim:
        raise ValueError(f'axes={names} do not name the {leaf.ndim} axes of shape {leaf.shape}.')
    axes = [axis for axis in range(leaf.ndim) if _base(names[axis]) not in STACKED]
    embeds = [axis for axis in axes if _base(names[axis]) == 'embed']
    side = tuple(embeds[:1] or _first(axes, names))
    rest = tuple(axis for axis in axes if axis not in side)
    if not rest:
        return MatrixView(names, (), side, *shapes)
    return MatrixView(names, *((rest, side) if side[0] > rest[-1] else (side, rest)), *shapes)


def _first(axes, names):
    return axes[:2] if len(axes) > 1 and _base(names[axes[1]]) == 'head_dim' else axes[:1]


def of(params, axes=None, base_shapes=None):
    """Returns the tree of MatrixViews of `params`.

    `axes` holds the logical axis names of parameters and `base_shapes` the (abstract) parameters of the muP base model,
    both under the names that `params` has. A leaf whose name one of them lacks, such as those inside a LoRA node where
    the model has a plain weight, is seen without axis names, or at a width ratio of 1.
    """
    known_axes = trees.flatten(axes, is_leaf=_is_axis_names) if axes is not None else {}
    base = trees.flatten(base_shapes) if base_shapes is not None else {}
    names = trees.names(params)
    return jax.tree.map(lambda leaf, name: view(leaf, known_axes.get(name), base.get(name)), params, names)


def _is_axis_names(node):
    return type(node) is tuple and all(name is None or isinstance(name, str) for name in node)
