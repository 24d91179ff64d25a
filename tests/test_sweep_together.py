"""Trials as one program: equal to one by one, with the same files; and what a number decides makes two programs."""

import dataclasses
import json
import re
from unittest import mock

import jax
import numpy as np
import pytest
from sweeps import FILE, SETTINGS, begin, one_device  # noqa: F401

from lm import config, data, optim, records, train
from lm.parallel import processes
from lm.sweep import claims, trials, vectors, worker
from lm.sweep.rules import Halving
from lm.sweep.trials import states
from lm.train import checkpoint, loop

FOUR = [{'seed': 0, 'data.seed': 0, 'optimizer.peak': 1e-2, 'optimizer.weight_decay': 0.0},
        {'seed': 1, 'data.seed': 0, 'optimizer.peak': 1e-3, 'optimizer.weight_decay': 0.5},
        {'seed': 1, 'data.seed': 3, 'optimizer.peak': 1e-2, 'optimizer.b2': 0.99},
        {'seed': 1, 'data.seed': 3, 'optimizer.peak': 3e-2, 'optimizer.schedule.end': 0.5, 'optimizer.clip': 0.2,
         'model.layer.dropout': 0.3, 'model.embedding.dropout': 0.2}]


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def alone(tmp_path_factory, cache):
    """Returns the sweep of the first and the last of FOUR, trained one by one."""
    sweep = begin(tmp_path_factory.mktemp('alone') / 'sweep', [FOUR[0], FOUR[3]])
    assert worker.work(sweep, cache) == 0
    return sweep


@pytest.fixture(scope='module')
def group(tmp_path_factory, cache):
    """Returns the sweep of FOUR, trained as one program."""
    sweep = begin(tmp_path_factory.mktemp('group') / 'sweep', FOUR)
    assert all(vectors.can_vmap(sweep.trials[0], other) for other in sweep.trials[1:])
    with mock.patch.object(worker, '_train_one', side_effect=AssertionError('trained alone')):
        assert worker.work(sweep, cache, 4) == 0
    return sweep


def compare(one, other):
    """Asserts that the trials of one sweep have the same records and last state in another, within 0.02%."""
    for a, b in [(a, b) for a in one.trials for b in other.trials if a.id == b.id]:
        left, right = (records.read(trial.directory) for trial in (a, b))
        assert [each.keys() - {'tokens_per_second'} for each in left] == [
            each.keys() - {'tokens_per_second'} for each in right]
        for x, y in zip(left, right, strict=True):
            for name in x.keys() - {'tokens_per_second'}:
                np.testing.assert_allclose(x[name], y[name], rtol=2e-4, err_msg=f'{a.overrides} {name}')
        assert sorted(path.name for path in a.directory.iterdir()) == sorted(p.name for p in b.directory.iterdir())
        abstract = train.program(a.settings).abstract
        first, second = (checkpoint.Store(trial.directory / 'checkpoints').restore(abstract) for trial in (a, b))
        assert {**first[1], 'losses': None} == {**second[1], 'losses': None}
        np.testing.assert_allclose(first[1]['losses'], second[1]['losses'], rtol=2e-4)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), first[0], second[0])


def test_together_is_one_by_one_within_rounding_with_the_same_files(alone, group):
    assert {trial.id for trial in alone.trials} < {trial.id for trial in group.trials}
    compare(alone, group)
    assert len({records.read(trial.directory)[-1]['valid/loss'] for trial in group.trials}) == 4


def test_a_scale_of_the_first_parameters_is_a_number_of_the_program(tmp_path, cache):
    (tmp_path / 'small.py').write_text(FILE.replace('vocab: int = 258', 'vocab: int = 258\n    scale: float = 0.02')
                                       .replace('0.02 * jax', 'self.scale * jax'))
    loaded, scales = config.load(tmp_path / 'small.py'), [{'model.scale': 0.01}, {'model.scale': 1.0}]
    one, other = (trials.plan(loaded, tmp_path / name, scales) for name in ('alone', 'group'))
    assert vectors.can_vmap(*other.trials)
    assert worker.work(one, cache) == worker.work(other, cache, 2) == 0
    compare(one, other)


@pytest.mark.long
def test_a_group_that_is_stopped_goes_on_together_as_if_it_never_was(group, tmp_path, cache, monkeypatch):
    sweep = begin(tmp_path / 'sweep', FOUR)
    monkeypatch.setattr(processes.Stop, 'reached', lambda self, step: step == 5)
    assert worker.work(sweep, cache, 4) == loop.PREEMPTED
    monkeypatch.undo()
    assert {vectors.saved(trial) for trial in sweep.trials} == {5}
    assert worker.work(sweep, cache, 4) == 0
    compare(group, sweep)


@pytest.mark.long
def test_spread_over_devices_is_the_same_within_rounding(group, tmp_path, cache, monkeypatch):
    devices = jax.local_devices()
    monkeypatch.setattr(jax, 'devices', lambda: devices)
    sweep = begin(tmp_path / 'sweep', FOUR)
    assert vectors.program(sweep.trials).place.num_devices == 4
    assert worker.work(sweep, cache, 4) == 0
    compare(group, sweep)


def test_trials_on_several_devices_say_nothing_to_each_other(tmp_path, monkeypatch):
    (tmp_path / 'small.py').write_text(FILE)
    loaded, devices = config.load(tmp_path / 'small.py'), jax.local_devices()
    monkeypatch.setattr(jax, 'devices', lambda: devices[:2])
    sweep = trials.plan(loaded, tmp_path / 'a', [{'seed': seed} for seed in range(4)])
    program, batch = vectors.program(sweep.trials), loaded.config.data.example()
    assert program.place.num_devices == 2

    def placed(shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=program.place)
    states = jax.tree.map(lambda x: placed(x.shape, x.dtype), jax.eval_shape(program.init))
    batches = jax.tree.map(lambda x: placed((4, *x.shape), x.dtype), batch)
    text = program.step.func.lower(*program.step.args, states, batches).compile().as_text()
    assert ' while(' in text and not re.findall(r' (all-\w+|collective-\w+|reduce-scatter)\S*\(', text)


def test_cores_are_devices_unless_someone_said_how_many():
    fresh, said = {'XLA_FLAGS': '--xla_a=1'}, {'XLA_FLAGS': f'{vectors.DEVICES}=3'}
    vectors.spread(1, fresh)
    vectors.spread(1, said)
    assert fresh == {'XLA_FLAGS': f'--xla_a=1 {vectors.DEVICES}=1'} and said == {'XLA_FLAGS': f'{vectors.DEVICES}=3'}


def test_a_lone_trial_among_several_devices_of_a_cpu_takes_one():
    assert vectors.alone(SETTINGS).devices.tolist() == jax.devices()[:1]
    assert vectors.alone(dataclasses.replace(SETTINGS, mesh={'data': 1})) is None


def test_what_python_branches_on_makes_another_program(tmp_path):
    sweep = begin(tmp_path / 'sweep', [{}, {'optimizer.ema': 0.0}, {'optimizer.b1': 0.8}, {'model.depth': 2},
                                       {'optimizer': optim.Lion()}, {'data.context': 8}, {'seed': 3},
                                       {'optimizer.clip': 0.0}, {'model.layer.dropout': 0.1},
                                       {'model.layer.attention.position.base': 500.0}])
    assert [vectors.can_vmap(sweep.trials[0], other) for other in sweep.trials] == [
        True, False, True, False, False, False, True, True, True, True]


@pytest.mark.parametrize('together', [1, 2])
def test_trials_whose_samples_cannot_be_drawn_are_finished_all_the_same(tmp_path, cache, capsys, together):
    corpus = dataclasses.replace(SETTINGS.data, tokenizer=data.Chars(), valid=SETTINGS.data.train)
    size = len({letter for document in corpus.train.documents() for letter in document.text})
    settings = dataclasses.replace(
        SETTINGS, data=corpus, steps=2, objective=train.NextToken(sample='€'),
        cadence=dataclasses.replace(SETTINGS.cadence, eval=0), model=dataclasses.replace(SETTINGS.model, vocab=size))
    sweep = begin(tmp_path / 'sweep', [{'seed': 0}, {'seed': 1}], settings)
    assert worker.work(sweep, cache, together) == 0
    assert list(states(sweep)[0].values()) == ['finished', 'finished']
    err = capsys.readouterr().err
    assert all(f"lm: {trial.directory} is finished, without its sample: '€' (U+20AC) is not" in err
               for trial in sweep.trials)


@pytest.mark.parametrize('together', [1, 2])
def test_trials_on_text_that_is_mostly_rejected_are_refused(tmp_path, cache, capsys, together):
    (tmp_path / 'a.jsonl').write_text('{"text": "abcdefghijklmnopqrstuvwxyz"}\n' + 'broken\n' * 10)
    corpus = dataclasses.replace(SETTINGS.data, train=data.Files(str(tmp_path / 'a.jsonl')))
    sweep = begin(tmp_path / 'sweep', [{'seed': 0}, {'seed': 1}], dataclasses.replace(SETTINGS, data=corpus))
    assert worker.work(sweep, cache, together) == 1
    failures = [json.loads((trial.directory / 'failed.json').read_text())['error'] for trial in sweep.trials]
    assert all('69.8% of a (train) is rejected: 10 x broken JSON' in failure for failure in failures)


@pytest.mark.long
def test_halving_leaves_the_best_of_each_rung(tmp_path, cache):
    settings = dataclasses.replace(SETTINGS, cadence=dataclasses.replace(SETTINGS.cadence, eval=2))
    four = [{'optimizer.peak': peak} for peak in (1e-5, 1e-4, 1e-3, 1e-2)]
    sweep = begin(tmp_path / 'sweep', four, settings, Halving(first=2, factor=2))
    assert worker.work(sweep, cache, 4) == 0
    found, progress = states(sweep)
    assert list(found.values()) == ['stopped', 'stopped', 'stopped', 'finished']
    assert [max(progress[trial.id][1]) for trial in sweep.trials] == [2, 2, 4, 8]
    assert worker.choose(sweep, claims.Claims(sweep.directory)) == ([], False)


@pytest.mark.long
def test_a_trial_that_is_not_finite_leaves_the_others_alone(tmp_path, cache):
    settings = dataclasses.replace(SETTINGS, patience=2, optimizer=optim.SGD(clip=0.0, schedule=optim.Constant()))
    sweep = begin(tmp_path / 'sweep', [{'optimizer.peak': 0.1}, {'optimizer.peak': 1e30}], settings)
    assert worker.work(sweep, cache, 2) == 1
    assert list(states(sweep)[0].values()) == ['finished', 'failed']
    told = json.loads((sweep.trials[1].directory / 'failed.json').read_text())['error']
    assert 'the loss is not finite' in told
