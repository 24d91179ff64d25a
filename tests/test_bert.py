"""A BERT and its objective from public parts alone, in one file: it trains, resumes and reads both ways.

Devlin et al. 2018, arXiv:1810.04805, without the prediction of the next sentence and the head's hidden layer.
"""
import json
import os
import shutil
from dataclasses import dataclass, field, replace
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import parameters

from lm import cli, config, data, optim, records, train
from lm.models import Layer, Model, PostNorm, Stack
from lm.nn import MLP, Attention, Context, Execution, Gelu, LayerNorm, Learned, NoPE, losses
from lm.nn.dropout import dropout
from lm.nn.embedding import look_up
from lm.nn.weights import apply, declare, einsum, fill, normal, weight
from lm.parallel import reductions, sharding

NORM = LayerNorm(1e-12)


def layer(heads, rate=0.0):
    return Layer(Attention(heads, causal=False, position=NoPE(), bias='all'), MLP(activation=Gelu(exact=True),
                 bias=True), norm=NORM, residual=PostNorm(), dropout=rate)


@dataclass(frozen=True)
class Bert(Model):
    """A bidirectional encoder of tokens, the last row of whose table stands for hidden ones."""

    vocab: int
    depth: int = 12
    width: int = 768
    layer: Layer = field(default_factory=lambda: layer(12, 0.1))
    length: int = 512
    types: int = 2
    execution: Execution = field(default_factory=Execution)

    @property
    def stack(self):
        return Stack((self.layer,), self.depth)

    @property
    def limit(self):
        return self.length

    def declare(self, key):
        def outside(scope, tokens, context):
            table = self._table(scope)
            return self._unembed(scope, table, self._embed(scope, table, tokens, tokens, context))
        tokens = jnp.zeros((1, 1), jnp.int32)
        return {**declare(outside, key, tokens, Context(tokens)), **self.stack.declare(key, self.width)}

    def _table(self, scope):
        return weight(scope, 'tokens', {'vocab': self.vocab + 1, 'embed': self.width}, normal(0.02))

    def _embed(self, scope, table, tokens, types, context):
        kinds = weight(scope, 'types', {'types': self.types, 'embed': self.width}, normal(0.02)).value
        x = look_up(table.value, tokens) + kinds[types]
        x = NORM(scope, 'embedding_norm', Learned(self.length).add(scope, x, context.positions))
        return dropout(x, self.layer.dropout, context.key, context.rows)

    def _unembed(self, scope, table, x):
        bias = weight(scope, 'output_bias', {'vocab': self.vocab + 1}, fill(0.0)).value
        return (einsum('BTD,VD->BTV', x, table) + bias)[..., :self.vocab]

    def logits(self, params, tokens, segments=None, positions=None, *, types=None, key=None):
        """Returns logits [B T V] for tokens [B T] of types [B T], all of type 0 where none are given."""
        keys = (None,) * 2 if key is None else jax.random.split(key)
        positions = jnp.arange(tokens.shape[1])[None] if positions is None else positions
        rows = reductions.global_row_offset(len(tokens)) + jnp.arange(len(tokens))
        context = Context(positions, segments, key=keys[0], rows=rows)
        types = jnp.zeros_like(tokens) if types is None else types

        def outside(function, *args):
            return apply(lambda scope: function(scope, self._table(scope), *args), params)
        x = outside(self._embed, tokens, types, context)
        x, _ = self.stack(params, x, context._replace(key=keys[1]), self.execution)
        return outside(self._unembed, x)


@dataclass(frozen=True)
class MaskedLM(train.Objective):
    """Cross entropy of a share `rate` of the tokens, which are hidden from the model."""

    rate: float = 0.15

    def _sums(self, model, params, batch, key, drop=None):
        """Returns ([B T] losses, 0 where none is asked for, and weights)."""
        tokens = batch['targets']
        hidden = jax.random.bernoulli(key, self.rate, tokens.shape)
        logits = model.logits(params, jnp.where(hidden, model.vocab, tokens), batch.get('segments'),
                              batch.get('positions'), key=drop)
        weights = hidden * batch.get('weights', 1.0)
        return losses.cross_entropy(logits, tokens, model.vocab)[0] * weights, weights

    def loss(self, model, params, batch, key=None):
        mask, drop = (jax.random.key(0), None) if key is None else jax.random.split(key)
        nll, weights = self._sums(model, params, batch, mask, drop)
        weight = jnp.sum(weights)
        loss = jnp.sum(nll) / jnp.maximum(weight, 1)
        return loss, {'loss': loss, 'weight': weight}

    def sums(self, model, sources, params, batch, key):
        return jnp.stack([jnp.sum(a) for a in self._sums(model, params, batch, key)])

    def scores(self, sums, stream):
        return {'loss': float(sums[0] / sums[1])}


# The model and its objective end here; what follows tests them.

TOY = Bert(50, depth=2, width=16, layer=layer(4), length=12)


def settings():
    text = data.Synthetic(count=60, length=300)
    return train.Config(
        model=Bert(258, depth=2, width=32, layer=layer(4, 0.1), length=24),
        data=data.Corpus(train=data.Pick(text, 0.0, 0.9), valid=data.Pick(text, 0.9, 1.0), tokenizer=data.Bytes(),
                         context=24, batch=16, packing='bestfit'),
        optimizer=optim.AdamW(peak=1e-2, schedule=optim.Constant()), steps=40, objective=MaskedLM(),
        cadence=train.Cadence(log=1, save=20))


def test_it_trains_and_resumes_as_it_went_on(tmp_path, monkeypatch):
    monkeypatch.setenv('PYTHONPATH', os.path.dirname(__file__))
    file = tmp_path / 'bert.py'
    file.write_text('from test_bert import settings\n\n\ndef config():\n    return settings()\n')

    def command(directory):
        return cli.main(['train', str(file), f'--workdir={directory}', f'--cache={tmp_path / "cache"}'])

    def measured(directory):
        return [(record['step'], record.get('loss'), record.get('valid/loss')) for record in records.read(directory)]
    assert command(tmp_path / 'whole') == 0
    whole = measured(tmp_path / 'whole')
    losses = [loss for _, loss, _ in whole if loss is not None]
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.75 * losses[0]
    assert whole[-1][2] < 0.75 * losses[0]
    resumed = shutil.copytree(tmp_path / 'whole', tmp_path / 'resumed')
    shutil.rmtree(resumed / 'checkpoints' / '40')
    assert command(resumed) == 0
    assert measured(resumed) == whole
    dumped = json.loads((resumed / 'config.json').read_text())['config']
    assert dumped['model']['type'] == 'test_bert:Bert' and config.build(dumped, __file__) == settings()


def batch(seed=0):
    """Returns a row of two documents, segments 1 and 2, and one of a document and padding."""
    tokens = np.random.default_rng(seed).integers(0, 50, (2, 12)).astype(np.int32)
    segments = np.array([[1] * 7 + [2] * 5, [1] * 9 + [0] * 3], np.int32)
    return {'inputs': tokens, 'targets': tokens, 'segments': segments, 'weights': (segments > 0).astype(np.float32),
            'positions': np.array([[*range(7), *range(5)], [*range(12)]], np.int32)}


logits = architectures.jit(TOY.logits)


def test_future_tokens_and_types_matter():
    params, tokens = parameters(TOY), batch()['inputs']
    changed, types = tokens.copy(), np.zeros_like(tokens)
    changed[:, 8] = (changed[:, 8] + 1) % 50
    types[:, 6:] = 1
    plain = logits(params, tokens)
    assert plain.shape == (2, 12, 50)
    assert np.abs(logits(params, changed) - plain).max((0, 2)).min() > 1e-3
    assert np.abs(logits(params, tokens, types=types) - plain)[:, :6].max() > 1e-3


def test_packed_is_alone():
    params, packed = parameters(TOY), batch()
    whole = logits(params, packed['inputs'], packed['segments'], packed['positions'])
    alone = logits(params, packed['inputs'][:1, 7:])
    np.testing.assert_allclose(whole[:1, 7:], alone, atol=1e-4)


def test_the_loss_is_of_hidden_tokens_alone():
    """Where all are hidden the model sees none of them, and where none is there is no loss."""
    params, key = parameters(TOY), jax.random.key(1)

    def loss(rate, tokens):
        return MaskedLM(rate).loss(TOY, params, {**batch(), 'targets': tokens}, key)
    tokens = batch()['targets']
    assert loss(0.0, tokens)[0] == 0
    total, metrics = loss(1.0, tokens)
    assert metrics['weight'] == batch()['weights'].sum()
    hidden = logits(params, np.full_like(tokens, 50), batch()['segments'], batch()['positions'])
    nll = -np.take_along_axis(np.asarray(jax.nn.log_softmax(hidden)), tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(total, np.average(nll, weights=batch()['weights']), rtol=1e-5)
    np.testing.assert_allclose(loss(0.5, tokens)[1]['weight'], 10.5, atol=5)


def test_it_is_split_over_a_mesh_by_the_names_of_its_axes():
    mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 4})
    model = replace(TOY, vocab=47)
    params, packed = parameters(model), batch()
    places = sharding.mirror(jax.eval_shape(model.init, jax.random.key(0)), model.axes(), mesh)

    def slope(params, batch):
        return jax.value_and_grad(lambda p: MaskedLM().loss(model, p, batch, jax.random.key(2))[0])(params)
    with jax.set_mesh(mesh):
        split = architectures.jit(slope)(jax.device_put(params, places), sharding.put(packed, mesh))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), split, architectures.jit(slope)(
        params, packed))


@pytest.mark.parametrize('vocab, count', [(30522, 108_922_170)])
def test_the_published_model_has_as_many_parameters(vocab, count):
    """That of bert-base-uncased without the pooler, and with a bias of the output."""
    model = Bert(vocab - 1)  # its vocabulary has the token that hides others
    assert sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))) == count
