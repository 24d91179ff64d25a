"""Sweeps that draw their trials: from what, by what, and that workers share what was found."""
import importlib.util
import json
import math
import threading

import pytest
from sweeps import FILE, SETTINGS, begin, one_device, reopened  # noqa: F401

from lm import cli, config
from lm.sweep import samplers, search
from lm.sweep.samplers import Observation, Optuna, Random, Range

SPACE = {'optimizer.peak': Range(1e-4, 1e-1), 'model.heads': Range(1, 8), 'model.norm': ('rms', 'layer')}
with_optuna = pytest.mark.skipif(not importlib.util.find_spec('optuna'), reason='optuna is not installed')


def test_ranges_are_log_uniform_whole_or_even():
    shares = [i / 1000 for i in range(1000)]
    peaks = [Range(1e-4, 1e-1).at(share) for share in shares]
    counts = [sum(low <= peak < 10 * low for peak in peaks) for low in (1e-4, 1e-3, 1e-2)]
    assert counts == pytest.approx([333] * 3, abs=5)
    assert {Range(2, 5).at(share) for share in shares} == {2, 3, 4, 5}
    assert sum(Range(0.0, 0.4).at(share) < 0.1 for share in shares) == pytest.approx(250, abs=5)
    assert samplers.space_of(['a=1e-4..1e-2', 'b=2..8', 'c=../x,../y', 'd=-1..1']) == {
        'a': Range(1e-4, 1e-2), 'b': Range(2, 8), 'c': ('../x', '../y'), 'd': Range(-1, 1)}


@pytest.mark.parametrize('sampler', [Random(40), pytest.param(Optuna(40), marks=with_optuna)])
def test_draws_are_inside_and_differ_and_repeat(sampler):
    observations = []
    for number in range(14):
        point = sampler.draw(SPACE, observations, number)
        assert point.keys() == SPACE.keys() and point['model.norm'] in ('rms', 'layer')
        assert 1e-4 <= point['optimizer.peak'] <= 1e-1 and point['model.heads'] in range(1, 9)
        observations.append(Observation(point, [1.0, None, math.inf][number % 3]))
    observations.append(Observation(observations[0].point, 2.0, stopped=3))
    assert len({each.point['optimizer.peak'] for each in observations[:14]}) == 14
    drawn = [sampler.draw(SPACE, observations, number) for number in 'xxy']
    assert drawn[0] == drawn[1] != drawn[2]


@with_optuna
def test_optuna_learns_from_observations():
    space, found = {'a': Range(1e-4, 1.0), 'b': ('good', 'bad')}, {}
    for sampler in (Random(40), Optuna(40)):
        observations = []
        for number in range(40):
            point = sampler.draw(space, observations, number)
            observations.append(Observation(point, abs(math.log10(point['a'] / 3e-3)) + (point['b'] == 'bad')))
        found[type(sampler)] = sorted(each.loss for each in observations)[20]
    assert found[Optuna] < 0.6 * found[Random]


@with_optuna
def test_running_points_spread_what_is_drawn_next():
    observations = [Observation({'a': value}, abs(math.log10(value / 3e-3)))
                    for value in (1e-4, 1e-3, 2.9e-3, 3.1e-3, 1e-2, 0.1) * 3]
    sampler = Optuna(40)
    idle = [sampler.draw({'a': Range(1e-4, 1.0)}, observations, number)['a'] for number in range(8)]
    running = [Observation({'a': value}, None) for value in idle]
    busy = [sampler.draw({'a': Range(1e-4, 1.0)}, observations + running, number)['a'] for number in range(8)]
    assert idle != busy


@pytest.mark.skipif(not all(map(importlib.util.find_spec, ('optuna', 'torch'))), reason='optuna or torch is absent')
def test_a_gaussian_process_draws_inside_from_all_observations():
    sampler = Optuna(40, sampler='GP')
    observations = [Observation(Random(40).draw(SPACE, [], number), float(number)) for number in range(11)]
    observations += [Observation(observations[0].point, math.inf), Observation(observations[1].point, None),
                     Observation(observations[2].point, 3.0, stopped=3)]
    point = sampler.draw(SPACE, observations, 'x')
    assert point.keys() == SPACE.keys() and point['model.norm'] in ('rms', 'layer')
    assert 1e-4 <= point['optimizer.peak'] <= 1e-1 and point['model.heads'] in range(1, 9)


def drawing(directory, sampler, over=('optimizer.peak=1e-4..1e-2',), seeds=0):
    sweep = begin(directory, [])
    search.begin(sweep, sampler, over, seeds)
    return sweep


def finish(trial, loss):
    (trial.directory / 'checkpoints' / str(SETTINGS.steps)).mkdir(parents=True)
    (trial.directory / 'metrics.jsonl').write_text(json.dumps({'step': SETTINGS.steps, 'valid/loss': loss}) + '\n')


def test_points_are_trials_one_a_seed_until_there_are_as_many_as_wanted(tmp_path):
    sweep = drawing(tmp_path / 'a', 'Random(3)', seeds=2)
    assert search.ask(sweep) and search.ask(sweep, 5) and not search.ask(sweep)
    listed = reopened(sweep.directory).trials
    assert len(listed) == 6 and len({trial.settings.optimizer.peak for trial in listed}) == 3
    assert [trial.settings.seed for trial in listed[:2]] == [0, 1]
    search.begin(sweep, 'Random(4)', ['optimizer.peak=1e-4..1e-2'], 2)
    assert search.ask(sweep) and search.ended(sweep)
    with pytest.raises(config.Error, match=r'draws from other ranges: --over optimizer.peak=1e-4..1e-2 --seeds=2'):
        search.begin(sweep, 'Random(4)', ['optimizer.peak=1e-4..1e-2'], 0)


def test_trials_become_observations(tmp_path):
    sweep = drawing(tmp_path / 'a', 'Random(4)', seeds=2)
    search.ask(sweep, 4)
    sweep = reopened(sweep.directory)
    finish(sweep.trials[0], 2.0)
    finish(sweep.trials[1], 3.0)
    finish(sweep.trials[2], 5.0)
    finish(sweep.trials[4], None)
    observations = search._observations(sweep, search.read(sweep.directory))
    assert [each.loss for each in observations] == [2.5, None, math.inf, None]
    assert observations[0].point == {'optimizer.peak': sweep.trials[0].settings.optimizer.peak}


def test_what_is_asked_for_again_and_again_gives_way_to_chance(tmp_path, monkeypatch):
    sweep, real = drawing(tmp_path / 'a', 'Random(3)'), samplers.Random.draw
    monkeypatch.setattr(samplers.Random, 'draw', lambda self, space, observations, number: (
        {'optimizer.peak': 1e-3} if int(number.split('.')[1]) < search.OWN else
        real(self, space, observations, number)))
    assert search.ask(sweep, 3)
    peaks = [trial.settings.optimizer.peak for trial in reopened(sweep.directory).trials]
    assert len(set(peaks)) == 3 and peaks[0] == 1e-3


def test_workers_that_ask_at_once_get_different_points(tmp_path):
    sweep = drawing(tmp_path / 'a', 'Random(12)')
    workers = [threading.Thread(target=lambda: [search.ask(sweep) for _ in range(4)]) for _ in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert len(reopened(sweep.directory).trials) == 12


def test_a_space_that_is_used_up_ends_the_search(tmp_path, capsys):
    sweep = drawing(tmp_path / 'a', 'Random(9)', ['model.depth=1..2', 'model.layer.attention.heads=1,2,3'])
    while search.ask(sweep):
        pass
    assert search.ended(sweep) and 'seems to have 4 points, fewer than trials=9' in capsys.readouterr().out
    heads = [trial.settings.model.layer.attention.heads for trial in reopened(sweep.directory).trials]
    assert sorted(heads) == [1, 1, 2, 2], '3 heads do not divide a width of 16'


@pytest.mark.parametrize('words, message', [
    (['--over=optimizer.peak=1e-4..1e-2'], "is a range; add --sample='Random(trials=20)'"),
    (['--sample=Random(3)'], 'has nothing to draw; add ranges'),
    (['--sample=Random(0)', '--over=optimizer.peak=1..2'], 'trials=0'),
    (['--sample=Optunna(3)', '--over=optimizer.peak=1..2'], 'Optuna'),
    (['--sample=Random(3)', '--over=optimizer.peak=2..1'], 'is an empty range; write the lower end first'),
    (['--sample=Random(3)', '--over=optimizer.paek=1..2'], "did you mean 'optimizer.peak'"),
    (['--sample=Random(3)', '--over=model.depth=1..2', '--over=model.depth=3..4'], 'model.depth is set twice'),
    (['--sample=Random(3)', '--over=seed=0..5', '--seeds=2'], 'seed is set twice, by --seeds too'),
    (["--sample=Optuna(3,sampler='CmaEs')", '--over=model.depth=1..2'], 'is not one of TPE, GP'),
])
def test_mistakes_are_one_line(tmp_path, capsys, words, message):
    assert cli.main(['sweep', 'experiments/tiny.py', f'--workdir={tmp_path / "a"}', *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(config.Error, match=r"needs optuna, which is not installed; try pip install 'lm\[optuna\]'"):
        Optuna(3).check()


@pytest.mark.parametrize('sampler', ['Random', pytest.param('Optuna', marks=with_optuna)])
def test_the_shell_trains_what_is_drawn_and_more_of_it_later(tmp_path, capsys, sampler):
    (tmp_path / 'small.py').write_text(FILE)
    where = [f'--workdir={tmp_path / "sweep"}', f'--cache={tmp_path / "cache"}']
    words = ['sweep', str(tmp_path / 'small.py'), '--over=optimizer.peak=1e-3..1e-1', *where, '--together=2']
    assert cli.main([*words, f'--sample={sampler}(trials=2)']) == 0
    assert '2 finished' in capsys.readouterr().out
    assert cli.main([*words, f'--sample={sampler}(trials=3)']) == 0
    assert cli.main(['sweep', '--worker', str(tmp_path / 'sweep'), where[1]]) == 0
    observations = search._observations(reopened(tmp_path / 'sweep'), search.read(tmp_path / 'sweep'))
    assert len(observations) == 3 and all(4 < each.loss < 6 for each in observations)
    assert cli.main(['report', str(tmp_path / 'sweep')]) == 0
