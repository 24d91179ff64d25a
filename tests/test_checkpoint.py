import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config
from lm.train import checkpoint

SAVED = {'blocks': {'query': jnp.arange(6.0).reshape(2, 3), 'out': jnp.full(3, 7.0)}, 'tokens': jnp.arange(4.0)}


@pytest.fixture
def store(tmp_path):
    store = checkpoint.Store(tmp_path / 'checkpoints')
    store.save(3, {'params': SAVED, 'step': jnp.int32(3)}, {'offset': 0})
    yield store
    store.close()


def test_what_is_being_saved_is_restored(store):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), SAVED)
    state, meta = store.restore({'params': abstract})
    jax.tree.map(np.testing.assert_array_equal, state['params'], SAVED)
    assert meta == {'offset': 0}


def test_a_step_that_is_not_there_is_refused(store):
    with pytest.raises(config.Error, match='checkpoint 5 .* cannot be read'):
        store.restore({'params': SAVED}, 5)
