"""Parameter trees: names, masks, parts, sizes."""
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, trees

TREE = {'embed': {'tokens': jnp.arange(12.0).reshape(4, 3)},
        'blocks': {'attention': {'query': jnp.ones((2, 3, 1, 3), jnp.bfloat16)},
                   'norm': {'scale': jnp.full((2, 3), 2.0)}}}


class Int8(NamedTuple):
    """A weight in two arrays, where a tree otherwise has one."""

    values: Any
    scale: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Sum:
    """A weight that is a sum of weights; it refuses to be without one, as a node with checks of its own would."""

    terms: list

    def __post_init__(self):
        assert len(self.terms) == 2


NODES = {'w': Int8(jnp.ones((2, 3), jnp.int8), jnp.full((1, 3), 2.0)), 'none': None,
         'sum': Sum([{'a': jnp.zeros(3)}, Int8(jnp.ones((2, 2), jnp.int8), jnp.ones(2))])}


def same(a, b):
    return (jax.tree.structure(a) == jax.tree.structure(b)
            and all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))))


def test_names_are_the_keys_joined_by_slashes():
    assert trees.names(TREE) == {'embed': {'tokens': 'embed/tokens'},
                                 'blocks': {'attention': {'query': 'blocks/attention/query'},
                                            'norm': {'scale': 'blocks/norm/scale'}}}
    assert list(trees.flatten(TREE)) == ['blocks/attention/query', 'blocks/norm/scale', 'embed/tokens']


@pytest.mark.parametrize('regex, found', [
    ('norm', ['blocks/norm/scale']),
    ('^blocks/', ['blocks/attention/query', 'blocks/norm/scale']),
    ('e$', ['blocks/norm/scale']),
    ('tokens|query', ['blocks/attention/query', 'embed/tokens']),
    ('', ['blocks/attention/query', 'blocks/norm/scale', 'embed/tokens']),
])
def test_mask_searches_anywhere_in_the_name(regex, found):
    assert [name for name, hit in trees.flatten(trees.mask(TREE, regex)).items() if hit] == found


def test_a_regex_that_matches_nothing_names_the_nearest():
    with pytest.raises(config.Error, match=r"^regex 'atention/qeury' .*; try blocks/attention/query, "):
        trees.mask(TREE, 'atention/qeury')


def test_what_is_no_regex_is_an_error_with_one_that_is():
    with pytest.raises(config.Error, match=r"^regex '\(norm' is not valid: .*; try '\\\\\(norm'\.$"):
        trees.mask(TREE, '(norm')
    for regex in '(' * 5000, 'a{99999999999999999999}':
        with pytest.raises(config.Error, match='is not valid|more characters'):
            trees.mask(TREE, regex)


def test_a_regex_that_python_may_read_otherwise_once_is_no_warning(recwarn):
    assert trees.pattern('[[a]').search('[') and not recwarn.list
    with pytest.raises(config.Error, match="^regex '\\[\\[' is not valid: unterminated character set"):
        trees.pattern('[[')
    assert not recwarn.list


def test_a_selection_has_no_empty_branches_and_merges_back():
    chosen = trees.mask(TREE, 'query')
    part = trees.select(TREE, chosen)
    assert list(part) == ['blocks'] and list(part['blocks']) == ['attention']
    doubled = trees.merge(TREE, jax.tree.map(lambda leaf: 2 * leaf, part))
    query = {'query': jnp.full((2, 3, 1, 3), 2.0)}
    assert same(doubled, {**TREE, 'blocks': {**TREE['blocks'], 'attention': query}})
    assert same(trees.merge(TREE, part), TREE)
    assert same(trees.merge(TREE, {}), TREE)
    assert same(trees.restrict(TREE, part), part)


@pytest.mark.parametrize('regex, part', [
    ('^w/scale', {'w': {'scale': NODES['w'].scale}}),
    ('^w/', {'w': NODES['w']._asdict()}),
    ('a$|sum/terms/1/v', {'sum': {'terms': {0: NODES['sum'].terms[0], 1: {'values': NODES['sum'].terms[1].values}}}}),
])
def test_any_nodes_are_masked_selected_and_merged_by_name(regex, part):
    chosen = trees.select(NODES, trees.mask(NODES, regex))
    assert same(chosen, part)
    assert trees.flatten(chosen).keys() <= trees.flatten(NODES).keys()
    assert same(trees.merge(NODES, chosen), NODES)
    doubled = trees.merge(NODES, jax.tree.map(lambda leaf: 2 * leaf, chosen))
    assert jax.tree.structure(doubled) == jax.tree.structure(NODES)
    for name, leaf in trees.flatten(doubled).items():
        factor = 2 if name in trees.flatten(chosen) else 1
        np.testing.assert_array_equal(leaf, factor * trees.flatten(NODES)[name])
    assert same(trees.restrict(doubled, chosen), jax.tree.map(lambda leaf: 2 * leaf, chosen))


def test_counts_and_bytes_also_of_abstract_arrays():
    abstract = jax.eval_shape(lambda: TREE)
    assert trees.count(TREE) == trees.count(abstract) == 12 + 18 + 6
    assert trees.bytes(TREE) == trees.bytes(abstract) == 4 * 12 + 2 * 18 + 4 * 6


def test_norm_is_that_of_all_leaves_in_one_vector_and_in_float32():
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(TREE)])
    assert trees.norm(TREE).dtype == jnp.float32
    np.testing.assert_allclose(trees.norm(TREE), np.linalg.norm(flat), rtol=1e-6)
    wide = {'w': jnp.full(4096, 100, jnp.float16)}  # the sum of squares is past float16's range
    np.testing.assert_allclose(trees.norm(wide), 6400, rtol=1e-6)
    assert trees.norm({}) == 0


def test_a_copy_survives_donation_of_the_original():
    original = jax.tree.map(jnp.copy, TREE)
    copy = trees.copy(original)
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(original)
    assert same(copy, TREE)


def test_only_a_number_that_is_known_is_statically_zero():
    seen = []
    jax.vmap(lambda x: seen.append(trees.statically_zero(x)))(jnp.zeros(2))
    assert seen == [False]
    assert [trees.statically_zero(x) for x in (0.0, 0, np.float32(0), 0.1)] == [True, True, True, False]
