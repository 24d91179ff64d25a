"""Objectives beside the next token: what they hide, what they score, and that it is drawn by rows from (seed, step)."""
import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import BIDIRECTIONAL, parameters

from lm import cli, config, data, train
from lm.parallel import sharding

BERT = BIDIRECTIONAL['bert']
KEY = jax.random.key(3)


def text(rows=64, length=20):
    tokens = np.random.default_rng(0).integers(0, 49, (rows, length + 1)).astype(np.int32)
    return {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:]}


def test_masked_tokens_are_hidden_replaced_and_kept_in_their_shares():
    batch = text(400, 50)
    out = train.MaskedLM(rate=0.3, replaced=0.2, kept=0.1).prepare(BERT, batch, KEY)
    chosen, changed = out['weights'] > 0, out['inputs'] != batch['targets']
    assert not (changed & ~chosen).any() and (out['targets'] == batch['targets']).all()
    np.testing.assert_allclose(chosen.mean(), 0.3, atol=0.01)
    np.testing.assert_allclose((out['inputs'] == 49)[chosen].mean(), 0.7 + 0.2 / 50, atol=0.02)
    np.testing.assert_allclose((~changed)[chosen].mean(), 0.1 + 0.2 / 50, atol=0.02)
    others = np.asarray(out['inputs'])[np.asarray(chosen & changed & (out['inputs'] != 49))]
    assert others.min() == 0 and others.max() == 48


def test_padding_is_never_scored():
    weights = np.tile(np.arange(20) < 12, (64, 1)).astype(np.float32)
    out = train.MaskedLM(rate=1.0).prepare(BERT, {**text(), 'weights': weights}, KEY)
    np.testing.assert_array_equal(out['weights'], weights)


def test_noise_is_drawn_by_the_number_of_a_row():
    mesh = sharding.make_mesh({'data': 8})
    objective, batch = train.MaskedLM(), text()
    whole = objective.prepare(BERT, batch, KEY)
    with jax.set_mesh(mesh):
        split = jax.jit(lambda batch: objective.prepare(BERT, batch, KEY))(sharding.put(batch, mesh))
    jax.tree.map(np.testing.assert_array_equal, whole, split)
    first = objective.prepare(BERT, {name: rows[:5] for name, rows in batch.items()}, KEY)
    jax.tree.map(lambda part, rows: np.testing.assert_array_equal(part, rows[:5]), first, whole)
    assert (np.asarray(whole['inputs'][0] == 49) != np.asarray(whole['inputs'][1] == 49)).any()


def test_the_loss_of_masked_tokens_is_that_of_the_formula():
    batch, params = text(4), parameters(BERT)
    objective = train.MaskedLM(rate=0.5)
    total, metrics = architectures.jit(lambda batch: objective.loss(BERT, params, batch))(batch)
    seen = objective.prepare(BERT, batch, jax.random.key(0))
    logits = np.asarray(architectures.jit(BERT.logits)(params, seen['inputs']), np.float64)
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, batch['targets'][..., None], -1)[..., 0]
    np.testing.assert_allclose(total, np.average(nll, weights=seen['weights']), rtol=1e-5)
    assert metrics['weight'] == seen['weights'].sum()
    sums = architectures.jit(lambda batch: objective.sums(BERT, 1, params, batch))(
        {**batch, 'weights': jnp.ones((4, 20)), 'source': jnp.zeros(4, jnp.int32)})
    np.testing.assert_allclose(sums, [[(nll * seen['weights']).sum(), seen['weights'].sum()]], rtol=1e-5)


def test_a_mask_that_is_a_token_of_the_text_is_refused(tmp_path, capsys):
    file = tmp_path / 'masked.py'
    file.write_text('''
from dataclasses import replace
from experiments import tiny
from lm import train
from lm.models import Decoder, Layer
from lm.nn import Attention

def config():
    model = Decoder(vocab=258, depth=1, width=32, layer=Layer(Attention(2, causal=False)))
    return replace(tiny.config(), model=model, objective=train.MaskedLM(), steps=12)
''')
    words = ['train', str(file), f'--cache={tmp_path}/cache', 'data.batch=8', 'data.context=32']
    assert cli.main([*words, f'--workdir={tmp_path}/refused']) == 2
    assert 'MaskedLM keeps token 257 for itself, which is one of the text; try' in capsys.readouterr().err
    assert cli.main([*words, f'--workdir={tmp_path}/run', 'model.vocab=259',
                     "data.tokenizer=Controls(Bytes(), ('<0>',))"]) == 0
    out = capsys.readouterr().out
    assert 'validation loss' in out and 'bits_per_byte' not in out


@pytest.mark.parametrize('make, words', [
    (lambda: train.MaskedLM(replaced=0.7, kept=0.5), 'more than all chosen tokens'),
    (lambda: train.MaskedLM(rate=1.5), 'rate=1.5'),
    (lambda: train.MaskedLM().check(architectures.DECODERS['gpt2']), 'does not see the tokens behind'),
    (lambda: data.Controls(data.Bytes(), ('<a>', '<a>')), 'a name twice')])
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(config.Error, match=words):
        make()
