"""Jumps of the loss: told by a robust rule, recorded with their documents and layers, and computed again to the bit."""
import dataclasses
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, data, optim, records, train
from lm.models.decoder import Decoder
from lm.parallel import sharding
from lm.train import loop, runs, spikes

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
        loop.fit(settings, built, (settings.data.open(place / 'cache', 'train'), None), run)
    finally:
        run.close()
    return {record['step']: record['loss'] for record in records.read(directory)}


@pytest.fixture(scope='module')
def jumped(place):
    """Returns (settings, directory, losses, the step at which it jumps)."""
    seed = next(seed for seed in itertools.count() if 36 <= strange(place, seed) <= 42)
    step = strange(place, seed)
    settings = train.Config(
        model=Decoder(vocab=258, depth=2, heads=2, width=16), data=corpus(place, seed), objective=Startled(),
        optimizer=optim.AdamW(peak=1e-2, schedule=optim.Cosine(warmup=2)), steps=step + 3, mesh={'data': 1},
        cadence=train.Cadence(log=1, save=5))
    return settings, place / 'run', go(settings, place / 'run', place), step


def test_a_jump_is_recorded_with_its_documents_and_layers(jumped):
    settings, directory, losses, step = jumped
    assert [file.name for file in (directory / 'spikes').iterdir()] == [f'{step}.json']
    found = spikes.read(directory, step)
    assert found['loss'] == losses[step] > found['median'] + settings.diagnosis.spike * found['deviation']
    assert {each['row'] for each in found['passages']} == {0, 1, 2, 3}
    assert 70 in [each['document'] for each in found['passages'] if '~' in each['text']]
    rows = found['layers']
    assert rows[0]['name'] == 'tokens' and [row['layer'] for row in rows if row['name'] == 'blocks/mlp/up'] == [0, 1]
    total = sum(row['gradient'] ** 2 for row in rows) ** 0.5
    np.testing.assert_allclose(total, found['grad_norm'], rtol=1e-5)
    assert all(row['ratio'] == row['update'] / row['weight'] > 0 for row in rows)


def test_a_closer_look_changes_nothing(jumped, place):
    settings, _, losses, _ = jumped
    assert go(dataclasses.replace(settings, spike=0.0), place / 'unwatched', place) == losses
    assert not (place / 'unwatched' / 'spikes').exists()


def test_a_replay_is_the_step_to_the_last_bit_and_its_record_the_same(jumped, place, capsys):
    settings, directory, losses, step = jumped
    before = spikes.path(directory, step).read_text()
    assert spikes.again(settings, directory, place / 'cache', step)
    out = capsys.readouterr().out
    assert f'loss {losses[step]} here and on record, equal to the last bit' in out and 'from checkpoint' in out
    assert spikes.path(directory, step).read_text() == before
    rows = [json.loads(line) for line in (directory / 'metrics.jsonl').read_text().splitlines()]
    changed = [{**row, 'loss': row['loss'] + 1e-6} if row['step'] == step - 1 else row for row in rows]
    spikes.path(directory, step).rename(place / 'aside')
    (directory / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, changed)) + '\n')
    assert not spikes.again(settings, directory, place / 'cache', step)
    assert f'on the way, step {step - 1} is the first that differs' in capsys.readouterr().out
    (directory / 'metrics.jsonl').write_text('\n'.join(map(json.dumps, rows)) + '\n')
    (place / 'aside').rename(spikes.path(directory, step))


def test_a_replay_of_another_experiment_or_of_a_step_not_reached_is_refused(jumped, place):
    settings, directory, _, step = jumped
    with pytest.raises(config.Error, match=f'replay={step + 9} is not one of the steps 1 to {step + 3}'):
        spikes.again(settings, directory, place / 'cache', step + 9)
    with pytest.raises(config.Error, match=r'of another experiment: seed \(0 there, 1 here\)'):
        spikes.again(dataclasses.replace(settings, seed=1), directory, place / 'cache', step)


@pytest.mark.parametrize('packing', ['windows', 'bestfit'])
def test_passages_are_where_the_rows_come_from(place, packing):
    stream = corpus(place, packing=packing).open(place / 'cache')
    for step in range(30):
        rows = stream.batch_at(step)['inputs']
        found = stream.passages(step, limit=99)
        for number, row in enumerate(rows):
            text = b''.join(stream.caches[0].document(each.document)[each.start:][:each.count].tobytes()
                            for each in found if each.row == number)
            kept = row[:(stream.batch_at(step)['segments'][number] > 0).sum()] if packing == 'bestfit' else row
            dtype = stream.caches[0].tokens.dtype
            ids = iter(np.frombuffer(text, dtype))
            assert all(any(token == other for other in ids) for token in kept)
            assert packing == 'bestfit' or list(np.frombuffer(text, dtype)[:-1]) == list(row)


def watch(limit=8.0, steps=10_000):
    settings = dataclasses.make_dataclass('Settings', ['spike', 'steps', 'save_every'])(limit, steps, 0)
    return spikes.Watch(settings, None, None)


def test_noise_and_a_falling_loss_do_not_jump():
    noise = np.random.default_rng(0).normal(size=5000)
    seen = watch()
    falling = 2 + 8 / np.sqrt(np.arange(1, 5001)) + 0.05 * noise
    assert not any(seen.jumps(loss) for loss in falling.tolist())


def test_a_jump_is_told_once_whatever_follows():
    losses = (3 + 0.01 * np.random.default_rng(0).normal(size=200)).tolist()
    losses[100:110] = [5.0] * 10
    losses[150] = float('nan')
    losses[40] = 1.0
    seen = watch()
    assert [step for step, loss in enumerate(losses) if seen.jumps(loss)] == [100, 150]
    assert not any(map(watch(0.0).jumps, losses))


def test_what_is_resumed_sees_what_was_never_stopped():
    losses = (3 + 0.01 * np.random.default_rng(1).normal(size=90)).tolist() + [3.2]
    whole, part = watch(), watch()
    told = [whole.jumps(loss) for loss in losses]
    for loss in losses[:50]:
        part.jumps(loss)
    resumed = watch()
    resumed.begin(json.loads(json.dumps({'losses': list(part.losses), 'offset': 0})))
    assert [resumed.jumps(loss) for loss in losses[50:]] == told[50:] and told[-1]


def test_going_back_costs_at_most_one_step_in_twenty():
    run = dataclasses.make_dataclass('Run', ['store'])(dataclasses.make_dataclass('Store', ['steps'])(lambda: [100]))
    seen = watch(steps=1000)
    seen.run = run
    assert [seen.worth(step) for step in (120, 120, 130, 127, 128)] == [True, False, False, True, False]
