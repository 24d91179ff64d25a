"""Leaves seen as stacks of matrices."""
import numpy as np
import pytest

from lm.optim import matrices


@pytest.mark.parametrize('names, inner, outer', [
    (('layers', 'embed', 'heads', 'head_dim'), (1,), (2, 3)),
    (('layers', 'heads', 'head_dim', 'embed'), (1, 2), (3,)),
    (('layers', 'experts', 'ff', 'embed'), (2,), (3,)),
    (('vocab', 'embed'), (0,), (1,)),
    (('embed', 'embed.out'), (0,), (1,)),
    (('heads', 'embed', 'head_dim'), (1,), (0, 2)),
    (('position', 'heads'), (0,), (1,)),
    (('layers', 'rank', 'heads', 'head_dim'), (1,), (2, 3)),
    (('layers', 'heads', 'head_dim'), (), (1, 2)),
    (('layers', 'norm'), (), (1,)),
    (('embed',), (), (0,)),
    (('layers',), (), ()),
    ((), (), ()),
])
def test_a_view_finds_the_matrix(names, inner, outer):
    assert matrices.view(np.zeros((2,) * len(names)), names) == matrices.MatrixView(names, inner, outer)
