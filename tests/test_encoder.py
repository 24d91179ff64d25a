"""Encoders: vectors of texts, classes, types and windows; what holds of every model is in test_decoder."""
import dataclasses
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from architectures import BIDIRECTIONAL, parameters
from test_decoder import packed_batch

from lm import config
from lm.models import Encoder, First, Layer, Mean, MupBase, TypedEmbedding, mup
from lm.models.encoder import bert_layer, modern_bert
from lm.nn import LayerNorm, Learned, losses
from lm.parallel import sharding

BERT = dataclasses.replace(BIDIRECTIONAL['bert'], pooling=First(), classes=3)


def classes(model, params, batch):
    return model.class_logits(params, model.states(params, batch))


@pytest.mark.parametrize('pooling', [First(), Mean()], ids=lambda pooling: type(pooling).__name__)
def test_vectors_and_classes_are_the_oracles(pooling):
    model = dataclasses.replace(BERT, pooling=pooling)
    params, batch = parameters(model), packed_batch(model)
    exact = oracle.double(params)
    x = oracle.Decoder(model, exact).states(*(batch[name] for name in ('inputs', 'segments', 'positions', 'types')))
    vectors = np.tanh(x[:, 0] @ exact['pooler'] + exact['pooler_bias']) if pooling == First() else np.stack(
        [row[segments == 1].mean(0) for row, segments in zip(x, batch['segments'], strict=True)])
    logits = vectors @ exact['classifier'] + exact['classifier_bias']
    assert np.ptp(logits) > 0.1
    np.testing.assert_allclose(architectures.jit(partial(classes, model))(params, batch), logits, atol=1e-4)


def test_padding_never_matters():
    params, batch = parameters(BERT), packed_batch(BERT)
    run = architectures.jit(lambda batch: (BERT.token_losses(params, batch)[0], classes(BERT, params, batch)))
    nll, logits = run(batch)
    padding = batch['segments'] == 0
    other = {name: np.where(padding, (rows + 1) % 50, rows) if name in ('inputs', 'types') else rows
             for name, rows in batch.items()}
    assert (other['inputs'] != batch['inputs']).sum() == 2
    changed, same = run(other)
    np.testing.assert_array_equal(changed[~padding], nll[~padding])
    np.testing.assert_array_equal(same, logits)
    longer = {name: np.pad(rows, ((0, 0), (0, 4))) for name, rows in batch.items()}
    padded, near = run(longer)
    np.testing.assert_allclose(padded[:, :12][~padding], nll[~padding], atol=1e-5)
    np.testing.assert_allclose(near, logits, atol=1e-5)


def test_types_matter_and_are_0_where_none_are_given():
    params, tokens = parameters(BERT), packed_batch(BERT)['inputs']
    logits = architectures.jit(lambda types: BERT.logits(params, tokens, types=types))
    plain = architectures.jit(BERT.logits)(params, tokens)
    np.testing.assert_array_equal(logits(np.zeros_like(tokens)), plain)
    assert np.abs(logits(np.ones_like(tokens)) - plain).max((0, 2)).min() > 1e-3


def test_a_window_of_modern_bert_is_half_on_each_side():
    model = modern_bert(50, 2, 16, 4, ff=20, window=6)
    assert [layer.attention.window for layer in model.pattern] == [0, 4]
    near = dataclasses.replace(model, depth=1, pattern=model.pattern[1:])
    params, tokens = parameters(near), packed_batch(near)['inputs']
    changed = tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 50
    forward = architectures.jit(near.logits)
    differs = np.abs(forward(params, tokens) - forward(params, changed)).max((0, 2)) > 0
    assert differs.tolist() == [2 <= t <= 8 for t in range(12)]


def test_the_norm_that_a_first_layer_lacks_never_learns():
    model = BIDIRECTIONAL['modern']
    params, batch = parameters(model), packed_batch(model)
    slope = architectures.jit(jax.grad(lambda params: model.token_losses(params, batch)[0].mean()))(params)
    assert [bool(np.any(row)) for row in slope['blocks']['attention_norm_scale']] == [False, True, True, True]


def test_every_mesh_is_one_device():
    model = dataclasses.replace(BERT, depth=4, layer=dataclasses.replace(BERT.layer, dropout=0.1))
    params, batch = parameters(model), packed_batch(model)
    batch = {name: np.tile(rows, (4, 1)) for name, rows in batch.items()}

    def slope(params, batch):
        def loss(params):
            states = model.states(params, batch, jax.random.key(1))
            nll, _ = model.target_losses(params, states)
            scores = losses.cross_entropy(model.class_logits(params, states), batch['inputs'][:, 0] % 3, 3)[0]
            return jnp.sum(nll * batch['weights']) + jnp.sum(scores)
        return jax.value_and_grad(loss)(params)
    alone = architectures.jit(slope)(params, batch)
    for sizes in ({'data': 2, 'context': 2, 'tensor': 2}, {'fsdp': 2, 'stage': 4}):
        mesh = sharding.make_mesh(sizes)
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, sharding.mirror(params, model.axes(), mesh))
            split = architectures.jit(slope)(placed, sharding.put(batch, mesh))
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4), split, alone)


def test_mup_shrinks_what_the_head_multiplies_and_not_what_its_norm_reads():
    model = dataclasses.replace(BERT, base=MupBase(width=8, heads=2))
    params, tokens = parameters(model), packed_batch(model)['inputs']
    params['output_bias'] = np.zeros_like(params['output_bias'])
    half, whole = (architectures.jit(variant.logits)(params, tokens) for variant in (model, BERT))
    np.testing.assert_allclose(half, whole / 2, rtol=1e-5, atol=1e-6)
    assert mup.base_model(model).layers[0].attention.heads == 2


@pytest.mark.parametrize('count, model', [
    (109_514_298, Encoder(30522)), (110_106_428, Encoder(30522, pooling=First(), classes=2)),
    (149_655_232 + 768, modern_bert(50368)),  # one norm more, which is not used
    (124_697_433, Encoder(50265, embedding=TypedEmbedding(Learned(514), norm=LayerNorm(), types=1)))],
    ids=['BERT', 'BERT with a class of pairs', 'ModernBERT', 'RoBERTa'])
def test_published_parameter_counts(count, model):
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    assert sum(leaf.size for leaf in shapes) == count + -model.vocab % 128 * (model.width + 1)


def test_what_an_encoder_cannot_be_is_refused():
    with pytest.raises(config.Error, match='leave model.layer out'):
        Encoder(50, 2, 24, bert_layer(4), (bert_layer(4),))
    assert Encoder(50, 2, 24, pattern=(Layer(bert_layer(4).attention),)).layers[0].attention.heads == 4
    with pytest.raises(config.Error, match='does not go on with a text'):
        BERT.prefill(parameters(BERT), np.zeros((1, 3), np.int32), np.array([3]), 5)
