"""The order in which a function reads its parameters: through casts, calls and scans."""
import jax
import jax.numpy as jnp

from lm.debug.reading_order import reading_order

PARAMS = {name: jnp.ones((3, 3)) for name in 'abcd'} | {'unused': jnp.ones(3)}


def test_leaves_come_in_the_order_of_the_products_that_use_them():
    def function(params, x):
        early = params['d'].T.astype(jnp.bfloat16)  # made ready first, used last
        x = jnp.dot(x, params['c'])
        x = jax.jit(lambda x, b: x @ b)(x, params['b'])
        return jnp.dot(x, params['a']) @ early
    assert reading_order(function, PARAMS, jnp.ones((2, 3))) == ['c', 'b', 'a', 'd', 'unused']


def test_what_a_scan_reads_comes_in_the_order_of_its_body():
    def function(params, x):
        def layer(x, weights):
            return jax.checkpoint(lambda x: x @ weights['b'])(x) * weights['a'], None
        return jax.lax.scan(layer, x @ params['d'], {'a': params['a'], 'b': params['c'][None].repeat(3, 0)})[0]
    assert reading_order(function, PARAMS, jnp.ones(3)) == ['d', 'c', 'a', 'b', 'unused']
