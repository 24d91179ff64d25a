"""Jumps of the loss: found by a robust rule, recorded with their documents, replayed to the bit, measured by layer."""
import dataclasses
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, data, optim, records, train, trees
from lm.commands import replay as command
from lm.debug.layers import layer_stats, of_one_stack
from lm.models import Decoder, Layer, MupBase
from lm.nn import Attention
from lm.parallel import sharding
from lm.train import loop, runs, spikes
from lm.train.monitor import Monitor

FILE = pathlib.Path(__file__)


@dataclasses.dataclass(frozen=True)
class Startled(train.NextToken):
    """A loss that is ten times what it is, and so its gradient, where the text has a tilde."""

    def loss(self, model, params, batch, key=None):
        loss, measured = super().loss(model, params, batch, key)
        factor = 1 + 9 * jnp.any(batch['inputs'] == ord('~'))
        return loss * factor, {**measured, 'loss': measured['loss'] * factor}


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, 'devices', lambda: devices)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Returns a folder with a hundred documents, of which the one numbered 70 has a tilde."""
    folder = tmp_path_factory.mktemp('place')
    for i in range(100):
        (folder / f'{i:03}.txt').write_text('a strange ~ text' if i == 70 else 'plain text. ' * 2)
    return folder


def corpus(place, seed=0, packing='windows'):
    return data.Corpus(train=data.Files(str(place / '*.txt')), valid=None, tokenizer=data.Bytes(), context=8, batch=4,
                       packing=packing, seed=seed)


def strange(place, seed):
    """Returns the first step (from 1) whose batch has a tilde."""
    stream = corpus(place, seed).open(place / 'cache')
    return next(step for step in itertools.count(1) if np.any(stream.batch_at(step - 1)['inputs'] == ord('~')))


def go(settings, directory, place):
    """Trains in a directory, and returns {step: loss}."""
    run = runs.Run(directory, config.Experiment(settings, {}, FILE))
    try:
        built = train.program(settings, sharding.make_mesh(settings.mesh, jax.devices()[:1]))
        loop.fit(built, [Monitor(settings, run, settings.data.open(place / 'cache', 'train'))])
    finally:
        run.close()
    return {record['step']: record['loss'] for record in records.read(directory)}


@pytest.fixture(scope='module')
def jumped(place):
    """Returns (settings, directory, losses, the step at which it jumps)."""
    seed = next(seed for seed in itertools.count() if 36 <= strange(place, seed) <= 42)
    step = strange(place, seed)
    settings = train.Config(
        model=Decoder(vocab=258, depth=2, width=16, layer=Layer(Attention(heads=2))),
        data=corpus(place, seed), objective=Startled(),
        optimizer=optim.AdamW(peak=1e-2, schedule=optim.Cosine(warmup=2)), steps=step + 3, mesh={'data': 1},
        cadence=train.Cadence(log=1, save=5))
    return settings, place / 'run', go(settings, place / 'run', place), step


def test_a_jump_is_recorded_with_its_documents(jumped):
    settings, directory, losses, step = jumped
    assert spikes.steps(directory) == [step]
    found = spikes.read(directory, step)
    assert found['loss'] == losses[step] > found['median'] + settings.diagnosis.spike * found['deviation']
    assert found['batch'] == step - 1 and found['layers'] is None
    assert {each['row'] for each in found['passages']} == {0, 1, 2, 3}
    assert 70 in [each['document'] for each in found['passages'] if '~' in each['text']]


def test_a_jump_never_steers_the_run(jumped, place):
    settings, directory, losses, _ = jumped
    steps = [record['step'] for record in records.read(directory)]
    assert steps == sorted(set(steps)) == list(losses)
    assert go(dataclasses.replace(settings, diagnosis=train.Diagnosis(spike=0.0)), place / 'unwatched', place) == losses
    assert not (place / 'unwatched' / 'spikes').exists()


def replayed(directory, place, *overrides, step=0):
    return command.main(str(directory), *overrides, step=step, cache=str(place / 'cache'), trust=True)


def test_a_replay_is_the_step_to_the_last_bit_and_measures_its_layers(jumped, place, capsys):
    _, directory, losses, step = jumped
    known = spikes.read(directory, step)
    assert replayed(directory, place) == 0
    out = capsys.readouterr().out
    assert f'step {step}: loss {losses[step]} here and on record, bit for bit' in out and 'from checkpoint' in out
    found = spikes.read(directory, step)
    assert {**found, 'layers': None} == known
    rows = found['layers']
    assert rows[0]['name'] == 'tokens' and [row['layer'] for row in rows if row['name'] == 'blocks/mlp/up'] == [0, 1]
    total = sum(row['gradient'] ** 2 for row in rows) ** 0.5
    np.testing.assert_allclose(total, found['grad_norm'], rtol=1e-5)
    assert all(row['ratio'] == row['update'] / row['weight'] > 0 for row in rows)
    assert replayed(directory, place, 'cadence.keep=7', step=step) == 0 and spikes.read(directory, step) == found


def test_a_replay_says_where_the_record_differs(jumped, place, capsys):
    _, directory, _, step = jumped
    rows = records.read(directory)
    changed = [{**row, 'loss': row['loss'] + 1e-6} if row['step'] == step - 1 else row for row in rows]
    spikes.path(directory, step).rename(place / 'aside')
    (directory / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, changed)) + '\n')
    with pytest.raises(config.Error, match='has no loss spike on record; give --step=N'):
        replayed(directory, place)
    assert replayed(directory, place, step=step) == 1
    assert f'before it, step {step - 1} is the first that differs' in capsys.readouterr().out
    (directory / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    (place / 'aside').rename(spikes.path(directory, step))


def test_a_replay_of_another_experiment_or_of_a_step_not_reached_is_refused(jumped, place):
    _, directory, _, step = jumped
    with pytest.raises(config.Error,
                       match=f'={step + 9} is not one of the steps 1 to {step + 3} .*; try --step={step + 3}.'):
        replayed(directory, place, step=step + 9)
    with pytest.raises(config.Error, match=r'of another experiment: seed \(0 there, 1 here\); override only mesh'):
        replayed(directory, place, 'seed=1', step=step)


def test_layer_stats_are_of_the_update_that_the_step_applies_under_mup(place):
    settings = train.Config(
        model=Decoder(vocab=258, depth=1, width=64, layer=Layer(Attention(heads=8)), base=MupBase(width=16, heads=2)),
        data=corpus(place),
        optimizer=optim.AdamW(peak=1e-2, schedule=optim.Constant()), steps=9, mesh={'data': 1})
    program = train.program(settings)
    batch = settings.data.open(place / 'cache').batch_at(0)
    state = program.init()
    before = trees.copy(state.params)
    rows = {row['name']: row['update'] for row in layer_stats(settings, program, state, batch)}
    with program.context():
        after, _ = program.step(state, batch)
    applied = trees.flatten(jax.tree.map(lambda x, y: float(jnp.linalg.norm(x - y)), after.params, before))
    assert rows.keys() == applied.keys()
    np.testing.assert_allclose([rows[name] for name in applied], list(applied.values()), rtol=1e-3)


def test_layers_are_those_of_one_stack():
    stacked = ['blocks/mlp/up', 'blocks_1/experts/up', 'blocks_1/mlp/up', 'blocks/mlp/down', 'decoder/blocks/mlp/up']
    assert of_one_stack('blocks/mlp/down', stacked) == ['blocks/mlp/up', 'blocks/mlp/down']
    assert of_one_stack('blocks_1/mlp/up', stacked) == ['blocks_1/experts/up', 'blocks_1/mlp/up']
    assert of_one_stack('decoder/blocks/mlp/up', stacked) == ['decoder/blocks/mlp/up']


@pytest.mark.parametrize('packing', ['windows', 'bestfit'])
def test_passages_are_where_the_rows_come_from(place, packing):
    stream = corpus(place, packing=packing).open(place / 'cache')
    for step in range(30):
        batch, found = stream.batch_at(step), stream.passages(step, limit=99)
        for number, row in enumerate(batch['targets']):
            ids = [token for each in found if each.row == number
                   for token in stream.caches[0].document(each.document)[each.start:][:each.count].tolist()]
            kept = row[batch['segments'][number] > 0] if packing == 'bestfit' else [batch['inputs'][number, 0], *row]
            assert ids == list(kept)


def test_noise_and_a_falling_loss_do_not_jump():
    noise = np.random.default_rng(0).normal(size=5000)
    seen = spikes.Detector(8.0)
    falling = 2 + 8 / np.sqrt(np.arange(1, 5001)) + 0.05 * noise
    assert not any(seen.observe(loss) for loss in falling.tolist())


def test_a_jump_is_told_once_whatever_follows():
    losses = (3 + 0.01 * np.random.default_rng(0).normal(size=200)).tolist()
    losses[100:110] = [5.0] * 10
    losses[150] = float('nan')
    losses[40] = 1.0
    seen = spikes.Detector(8.0)
    assert [step for step, loss in enumerate(losses) if seen.observe(loss)] == [100, 150]
    assert not any(map(spikes.Detector(0.0).observe, losses))


def test_what_is_resumed_sees_what_was_never_stopped():
    losses = (3 + 0.01 * np.random.default_rng(1).normal(size=90)).tolist() + [3.2]
    whole, part, resumed = (spikes.Detector(8.0) for _ in range(3))
    told = [whole.observe(loss) for loss in losses]
    for loss in losses[:50]:
        part.observe(loss)
    resumed.begin(json.loads(json.dumps(list(part.losses))))
    assert [resumed.observe(loss) for loss in losses[50:]] == told[50:] and told[-1]


def test_a_damaged_record_of_a_step_is_refused_with_its_file(tmp_path, capsys):
    record = {'step': 5, 'loss': 3.0, 'median': None, 'deviation': None, 'grad_norm': 1.0, 'batch': 4, 'passages': [{}],
              'layers': [{'name': 'a', 'layer': 0, 'gradient': 1.0, 'weight': None, 'update': 2.0, 'bits': [1, 2, 3]}]}
    assert spikes.steps(tmp_path) == [] and spikes.read(tmp_path, 5) is None
    spikes.write(tmp_path, record)
    assert spikes.read(tmp_path, 5) == record
    for other in ({**record, 'step': 6}, {**record, 'layers': [{**record['layers'][0], 'bits': [1]}]}, [], None,
                  {**record, 'layers': 3}, {**record, 'batch': True}):
        spikes.path(tmp_path, 5).write_text(json.dumps(other))
        with pytest.raises(config.Error, match='spikes/5.json is damaged .*delete it, and lm replay writes it again'):
            spikes.read(tmp_path, 5)
    for name in ('²', '05', 'x', '-1', '9' * 30):
        (tmp_path / 'spikes' / f'{name}.json').write_text('{}')
    (tmp_path / 'spikes' / '.7.json.99').write_text('')
    assert spikes.steps(tmp_path) == [5]
    assert capsys.readouterr().err.count('is no record of a step') == 5
