"""What replays rest on: the order in which a model reads its parameters, and checksums that no mesh changes."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import data, optim, train, trees
from lm.debug import layers
from lm.models import Decoder, Head, Layer
from lm.nn import MLP, Attention, Execution


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_parameters_come_in_the_order_that_the_model_reads_them(remat):
    settings = train.Config(
        model=Decoder(vocab=50, depth=3, width=16, head=Head(tied=False), execution=Execution(remat=remat),
                      layer=Layer(Attention(heads=2, bias='all'), MLP(bias=True))),
        data=data.Corpus(train=data.Synthetic(), valid=None, tokenizer=data.Bytes(), context=8, batch=8),
        optimizer=optim.AdamW(), steps=100)
    order, stacked = layers.names_as_read(settings, train.program(settings))
    assert sorted(order) == sorted(trees.flatten(jax.eval_shape(settings.model.init, jax.random.key(0))))
    assert order[0] == 'tokens' and order[-2:] == ['final_norm_scale', 'output'] and stacked == order[1:-2]
    places = [order.index(f'blocks/{name}') for name in
              ('attention_norm_scale', 'attention/query', 'attention/value', 'attention/out', 'mlp/up', 'mlp/down')]
    assert places == sorted(places)


def test_a_checksum_is_the_same_on_every_mesh_and_another_for_any_other_bits():
    x = jax.random.normal(jax.random.key(0), (8, 6))
    tree = {'float': x, 'half': x.astype(jnp.bfloat16), 'whole': jnp.arange(8), 'one': jnp.int32(3), 'fact': x > 0}
    known = jax.jit(trees.checksums)(tree)
    mesh = jax.make_mesh((4, 2), ('data', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for axes in ('data', 'tensor'), ('tensor', None), (None, 'tensor'):
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        assert trees.checksums(jax.device_put(x, place)) == known['float']
    others = [x.at[3, 2].set(np.nextafter(x[3, 2], 9)), x[:, ::-1], x.reshape(6, 8).T, -x,
              x.at[0, 0].set(x[0, 1]).at[0, 1].set(x[0, 0])]
    assert len({int(known['float']), *(int(trees.checksums(other)) for other in others)}) == 6
    assert int(trees.checksums(jnp.float32(0.0))) != int(trees.checksums(jnp.float32(-0.0)))
