"""Multi-token prediction: the losses of later tokens, and that runs resume; drafts are in test_speculation.py."""
import re
import shutil
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import ahead, parameters
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lm import cli, config, train
from lm.models import Decoder, Embedding, Head, Layer
from lm.nn import MLP, Attention, Execution, Experts, Learned, Silu
from lm.nn.context import Context
from lm.parallel import sharding

OBJECTIVE = train.MultiToken(weight=0.5, z_loss=0.1, smoothing=0.1)


MODEL = ahead('llama')
PARAMS = parameters(MODEL)


def text(rows=8, length=16, packed=False):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50, (rows, length + 1)).astype(np.int32)
    weights = rng.random((rows, length)).astype(np.float32)
    batch = {'inputs': tokens[:, :-1], 'targets': tokens[:, 1:], 'weights': weights}
    if packed:
        batch['segments'] = 1 + np.cumsum(rng.random((rows, length)) < 0.2, -1).astype(np.int32)
        first = np.maximum.accumulate(np.where(np.diff(batch['segments'], prepend=-1), np.arange(length), 0), -1)
        batch['positions'] = (np.arange(length) - first).astype(np.int32)
    return batch


def test_later_tokens_are_those_behind_the_targets_of_their_own_segment():
    batch = {'inputs': np.zeros((1, 6), int), 'targets': np.int32([[1, 2, 3, 4, 5, 6]]),
             'segments': np.int32([[1, 1, 1, 1, 2, 2]]), 'weights': np.float32([[1, 1, 1, 0, 1, 1]])}
    made = OBJECTIVE.prepare(ahead('gpt2', 2), batch, None)
    np.testing.assert_array_equal(made['later'][0], [[2, 3], [3, 4], [4, 0], [0, 0], [6, 0], [0, 0]])
    np.testing.assert_array_equal(made['later_weights'][0], [[1, 1], [1, 0], [0, 0], [0, 0], [1, 0], [0, 0]])


def test_the_loss_is_that_of_the_next_token_and_of_each_behind_it():
    model, batch = ahead('neox', 2), text(2, 6, packed=True)
    params = parameters(model)

    @architectures.jit
    def run(batch):
        made = OBJECTIVE.prepare(model, batch, None)
        tokens, places = made['targets'], Context(batch['positions'], batch['segments'])
        x, logits = model.states(params, batch).x, []
        for number in (1, 2):
            x, _ = model.module(params, number, x, tokens, places)
            tokens, score = made['later'][..., number - 1], model._scores(params, x)
            logits.append(score)
        return (OBJECTIVE.loss(model, params, batch), train.NextToken(z_loss=0.1, smoothing=0.1).loss(
            model, params, batch), made, jnp.stack(logits, 2))
    (total, metrics), (plain, known), made, logits = jax.device_get(run(batch))
    log_z = np.log(np.exp(logits.astype(float)).sum(-1))
    nll = log_z - 0.9 * np.take_along_axis(logits, made['later'][..., None], -1)[..., 0] - 0.1 * logits.mean(-1)
    means = (nll * made['later_weights']).sum((0, 1)) / batch['weights'].sum()
    squares = (log_z ** 2 * made['later_weights']).sum((0, 1)) / batch['weights'].sum()
    measured = [metrics[name] for name in ('loss', 'loss_2', 'loss_3')]
    np.testing.assert_allclose(measured, [known['loss'], *means], rtol=1e-5)
    np.testing.assert_allclose(total, plain + 0.5 * np.mean(means + 0.1 * squares), rtol=1e-5)


@pytest.mark.parametrize('name', ['neox', 'relative', 'gemma2'])
def test_no_loss_sees_the_token_that_it_is_of_nor_another_segment(name):
    model, batch = ahead(name), OBJECTIVE.prepare(MODEL, text(1, packed=True), None)
    params = parameters(model)
    losses = architectures.jit(lambda batch: model.later_losses(params, model.states(params, batch))[1])
    plain, at = np.asarray(losses(batch))[0], 9  # the normaliser depends on what is read alone
    changed = {name: np.array(batch[name]) for name in ('inputs', 'targets', 'later')}
    changed['inputs'][0, at] = changed['targets'][0, at - 1] = (batch['inputs'][0, at] + 1) % 50
    for number in range(1, 3):
        changed['later'][0, at - 1 - number, number - 1] = changed['inputs'][0, at]
    moved = np.abs(np.asarray(losses({**batch, **changed}))[0] - plain)
    own = batch['segments'][0] == batch['segments'][0, at]
    for number in range(1, 4):
        assert moved[:at - number, number - 1].max() == 0
        seen = own & (np.arange(16) >= at - number) & np.roll(own, -number)
        assert (moved[seen, number - 1] > 1e-6).all() and seen.any()
        assert moved[(np.arange(16) > at) & ~own].max(initial=0) == 0


def test_scores_are_those_of_the_next_token_and_of_each_behind_it():
    batch = text(4, 8)
    rows = {**batch, 'weights': np.ones((4, 8), np.float32), 'source': np.int32([0, 1, 1, 0])}
    sums = architectures.jit(lambda rows: OBJECTIVE.sums(MODEL, 2, PARAMS, rows, jax.random.key(0)))(rows)
    plain = architectures.jit(lambda rows: train.NextToken().sums(MODEL, 2, PARAMS, rows, jax.random.key(0)))(rows)
    np.testing.assert_allclose(sums[:, :2], plain, rtol=1e-5)
    np.testing.assert_array_equal(sums[:, 3::2], [[14, 12, 10]] * 2)
    made = OBJECTIVE.prepare(MODEL, rows, None)
    nll, *_ = architectures.jit(lambda made: MODEL.later_losses(PARAMS, MODEL.states(PARAMS, made)))(made)
    np.testing.assert_allclose(sums[:, 2].sum(), np.sum(nll[..., 0] * made['later_weights'][..., 0]), rtol=1e-5)

    class Stream:
        lost, sources = 'no bytes', ['a', 'b']
    scores, known = OBJECTIVE.scores(np.asarray(sums), Stream), train.NextToken().scores(np.asarray(plain), Stream)
    assert {name: scores[name] for name in known} == pytest.approx(known)
    assert scores['loss_3'] == pytest.approx(float(sums[:, 4].sum() / 24))


SPARSE = Decoder(50, 2, 32, Layer(Attention(8), Experts(count=8, top_k=2, ff=16, balance=0.0, bias_rate=0.1)))
DENSE = ahead(Decoder(50, 2, 32, Layer(Attention(8, 8), MLP(0, Silu(), True), dropout=0.2), head=Head(tied=False),
                      embedding=Embedding(Learned(16), dropout=0.1), execution=Execution(vocab_chunks=2, remat='full')),
              2)


@pytest.mark.parametrize('model, sizes', [
    (DENSE, {'data': 2, 'fsdp': 2, 'tensor': 2}),
    *(pytest.param(*case, marks=pytest.mark.long) for case in (
        (DENSE, {'data': 4, 'fsdp': 2}), (DENSE, {'fsdp': 2, 'context': 4}), (DENSE, {'data': 2, 'tensor': 4}),
        (ahead(SPARSE, 2), {'data': 4, 'fsdp': 2})))])
def test_micro_batches_over_a_mesh_are_one_batch_of_one_device(model, sizes):
    mesh, params, batch, key = sharding.make_mesh(sizes), parameters(model), text(32, packed=True), jax.random.key(1)
    places = sharding.mirror(params, model.axes(), mesh)

    def gradient(parts):
        return train.accumulated(partial(OBJECTIVE.loss, model), parts)
    with jax.set_mesh(mesh):
        step = architectures.jit(gradient(2), out_shardings=(places, NamedSharding(mesh, P())))
        grads, measured = step(jax.device_put(params, places), sharding.put(batch, mesh), key)
    known_grads, known = architectures.jit(gradient(2))(params, batch, key)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), measured, known)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), grads, known_grads)


def test_micro_batches_add_up_to_the_batch():
    model, batch = ahead('qwen3'), text(8, packed=True)
    one, two = (architectures.jit(train.accumulated(partial(OBJECTIVE.loss, model), parts))(
        parameters(model), batch, jax.random.key(0)) for parts in (1, 2))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=1e-5), one, two)


def test_a_pipeline_is_refused_in_one_line():
    mesh = sharding.make_mesh({'stage': 2, 'data': 4})
    with jax.set_mesh(mesh), pytest.raises(config.Error, match='try a mesh without stage'):
        jax.eval_shape(lambda batch: OBJECTIVE.loss(MODEL, PARAMS, batch), text())


def test_the_trunk_is_the_decoder_and_what_routes_learns_in_modules_too():
    model = ahead(SPARSE, 2)
    whole, trunk = (architectures.jit(m.init)(jax.random.key(0)) for m in (model, SPARSE))
    modules = whole.pop('modules')
    jax.tree.map(np.testing.assert_array_equal, whole, trunk)
    loads = jnp.tile(jnp.arange(8) / 28, (4, 1))
    params, metrics = model.post_update({**whole, 'modules': modules}, {'load': loads})
    for after, before in ((params['blocks'], whole['blocks']), *((params['modules'][k], modules[k]) for k in '12')):
        bias = after['experts']['router_bias'] - before['experts']['router_bias']
        expected = np.broadcast_to(0.1 * np.sign(1 / 8 - np.arange(8) / 28), bias.shape)
        np.testing.assert_allclose(bias, expected, rtol=1e-5)
    assert metrics['load'] == 2 and model.post_update({**whole, 'modules': modules}, {'load': loads[:2]})


TRAIN = '''
from dataclasses import fields, replace
from experiments import tiny
from lm import train
from lm.models import MultiTokenDecoder

def config():
    trunk = {field.name: getattr(tiny.config().model, field.name) for field in fields(tiny.config().model)}
    return replace(tiny.config(), model=MultiTokenDecoder(**trunk), objective=train.MultiToken(), steps=12)
'''


def test_a_run_resumes_generates_and_is_refused_by_what_does_not_know_it(tmp_path, capsys):
    file = tmp_path / 'ahead.py'
    file.write_text(TRAIN)
    words = ['train', str(file), f'--cache={tmp_path}/cache', 'data.batch=8', 'data.context=32', 'model.depth=1',
             'model.width=32', 'cadence.save=6', f'--workdir={tmp_path}/whole']
    assert cli.main(words) == 0
    whole = [line for line in capsys.readouterr().out.splitlines() if 'loss_3' in line or 'validation' in line]
    assert whole
    shutil.rmtree(tmp_path / 'whole/checkpoints/12')
    assert cli.main(words) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if 'validation' in line][-1] == whole[-1]
    assert cli.main(['generate', f'{tmp_path}/whole', 'a', '--length=8']) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith('a') and re.search(r'\d\.\d\d tokens a pass of the trunk', shown.err)
    assert cli.main(['generate', f'{tmp_path}/whole', 'a', 'b', '--length=8', '--temperature=0']) == 0
    assert 'tokens a pass' in capsys.readouterr().err
    for verb, message in (('convert', 'no family describes such a MultiTokenDecoder'), ('plan', 'lm plan counts')):
        target = [f'{tmp_path}/whole', f'{tmp_path}/hf'] if verb == 'convert' else [str(file), '--on=v5e-1']
        assert cli.main([verb, *target]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count('\n') == 1
