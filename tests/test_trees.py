"""Parameter trees: names, masks, parts, sizes."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, trees

TREE = {'embed': {'tokens': jnp.arange(12.0).reshape(4, 3)},
        'blocks': {'attention': {'query': jnp.ones((2, 3, 1, 3), jnp.bfloat16)},
                   'norm': {'scale': jnp.full((2, 3), 2.0)}}}


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
