"""Sweeps: what they list, that each trial is trained once, and that it is the run that `lm train` would make."""
import concurrent.futures
import io
import json
import os
import shutil

import damage
import pytest
import rich.console
from sweeps import FILE, one_device, reopened  # noqa: F401

from lm import cli, config, records
from lm.sweep import chain, claims, grid, sample, trials, view, worker, zipped
from lm.train import runs


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'small.py'
    path.write_text(FILE)
    return path


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


def listed(file, directory, overrides, **given):
    return trials.plan(config.load(file, given), directory, overrides)


def losses(directory):
    return {each['step']: each['loss'] for each in records.read(directory) if 'loss' in each}


def test_grids_combine_every_value_and_every_trial_of_a_list():
    assert grid({'a': [1, 2], 'b': [3, 4]}) == [{'a': 1, 'b': 3}, {'a': 1, 'b': 4}, {'a': 2, 'b': 3}, {'a': 2, 'b': 4}]
    assert grid(zipped({'a': [1, 2], 'b': [3, 4]}), {'c': [5]}) == [{'a': 1, 'b': 3, 'c': 5}, {'a': 2, 'b': 4, 'c': 5}]
    assert grid() == [{}] and chain([{'a': 1}], grid({'b': [2]})) == [{'a': 1}, {'b': 2}]


def test_samples_are_log_uniform_and_repeat():
    drawn = [each['a'] for each in sample({'a': (1e-4, 1.0)}, 400)]
    shares = [sum(low <= value < 10 * low for value in drawn) / 400 for low in (1e-4, 1e-3, 1e-2, 1e-1)]
    assert all(0.17 < share < 0.33 for share in shares)
    assert sample({'a': (1, 2), 'b': ['x', 'y']}, 5) == sample({'a': (1, 2), 'b': ['x', 'y']}, 9)[:5]
    assert sample({'a': (1, 2)}, 3) != sample({'a': (1, 2)}, 3, seed=1)


@pytest.mark.parametrize('make, message', [
    (lambda: grid({'a': [1]}, [{'a': 2}]), 'two axes of a grid set a'),
    (lambda: zipped({'a': [1], 'b': [1, 2]}), 'differ in length: a has 1, b has 2'),
    (lambda: sample({'a': (0, 1)}, 2), r'a=\(0, 1\) is no range'),
])
def test_combinators_refuse_what_does_not_combine(make, message):
    with pytest.raises(config.Error, match=message):
        make()


def test_the_shell_names_values_components_and_seeds(file, tmp_path):
    swept = listed(file, tmp_path / 'a', grid(*trials.axes(
        ('optimizer.peak=1e-3,1e-2', 'data.tokenizer=bytes,Chars()', 'optimizer=Lion(b1=0.8,b2=0.9)'), 2)))
    assert len({trial.id for trial in swept.trials}) == 8
    first = swept.trials[0]
    assert {type(trial.settings.data.tokenizer).__name__ for trial in swept.trials} == {'Bytes', 'Chars'}
    assert first.settings.optimizer.peak == 1e-3 and first.settings.optimizer.b2 == 0.9
    assert [(trial.settings.seed, trial.settings.data.seed) for trial in swept.trials[:2]] == [(0, 0), (1, 1)]
    again = reopened(tmp_path / 'a').trials
    assert all(not config.diff(a.settings, b.settings) for a, b in zip(again, swept.trials, strict=True))
    for text in ('model.depth', 'model.depth=1,,2'):
        with pytest.raises(config.Error, match='is no list of values'):
            trials.axes((text,), 0)


def test_a_trial_is_shown_by_what_differs_from_defaults(file, tmp_path):
    swept = listed(file, tmp_path / 'a', grid(*trials.axes(('model.position=Rope,Rope(base=500.0)', 'steps=6,7'), 0)))
    assert [trials.shown(trial) for trial in swept.trials] == [
        'model.position=Rope steps=6', 'model.position=Rope steps=7',
        'model.position=Rope(base=500.0) steps=6', 'model.position=Rope(base=500.0) steps=7']


def test_identity_is_of_values_not_of_files_or_of_what_changes_nothing(file, tmp_path):
    moved = shutil.copy(file, tmp_path / 'renamed.py')
    base = trials.identity(config.load(file).config)
    assert trials.identity(config.load(moved).config) == base
    assert trials.identity(config.load(file, ['cadence.log=5', 'cadence.save=0', 'objective.sample=B']).config) == base
    assert trials.identity(config.load(file, ['seed=1']).config) != base


def test_mistakes_in_a_sweep_are_one_line(file, tmp_path):
    with pytest.raises(config.Error, match='trials 0 and 2 of the sweep are the same: seed=1'):
        listed(file, tmp_path / 'a', [{'seed': 1}, {'seed': 2}, {'seed': 1}])
    with pytest.raises(config.Error, match=r'0 \(cadence.save=1\) and 1 \(cadence.save=3\) .* are the same run'):
        listed(file, tmp_path / 'a', [{'cadence.save': 1}, {'cadence.save': 3}])
    with pytest.raises(config.Error, match="no field 'optimizer.paek'; did you mean 'optimizer.peak'"):
        listed(file, tmp_path / 'a', [{'optimizer.paek': 1}])
    with pytest.raises(config.Error, match='holds no sweep'):
        reopened(tmp_path / 'a')
    listed(file, tmp_path / 'a', [{'seed': 1}])
    with pytest.raises(config.Error, match=r'is the sweep of another experiment: steps \(6 there, 7 here\)'):
        listed(file, tmp_path / 'a', [{'seed': 1}], steps=7)
    (tmp_path / 'b').write_text('')
    with pytest.raises(config.Error, match='cannot write to .*b: '):
        listed(file, tmp_path / 'b', [{'seed': 1}])


@pytest.mark.parametrize('words, message', [
    (['FILE', '--together=0'], '--together=0 is no number of trials; try --together=16'),
    (['FILE', '--seeds=-1'], '--seeds=-1 is negative'),
    (['FILE', '--over=model.vocab=1,2', '--over=model.vocab=3'], 'two axes of a grid set model.vocab'),
    (['FILE', '--workdir=gs://bucket/x'], 'gs://bucket/x is a bucket, and workers claim trials by files'),
    (['--worker', 's3://bucket/x'], 's3://bucket/x is a bucket'),
    (['--worker', 'DIR', '--seeds=3'], '--worker takes a sweep as it was begun, and --seeds would change nothing'),
    (['--watch', 'DIR', 'steps=3'], '--watch takes a sweep as it was begun, and overrides would change nothing'),
    (['--watch', 'DIR'], 'holds no sweep; begin one with lm sweep EXPERIMENT'),
    (['FILE', '--stop=Halving(first=6)'], 'judges first at step 6 and the trials end at step 6; try first=1'),
    (['NONE'], 'sweep() yields no trial'),
])
def test_mistakes_on_the_line_are_one_line(file, tmp_path, capsys, words, message):
    (tmp_path / 'none.py').write_text(f'{FILE}\n\ndef sweep():\n    return []\n')
    places = {'FILE': str(file), 'DIR': str(tmp_path), 'NONE': str(tmp_path / 'none.py')}
    where = () if {'--watch', '--worker'} & {*words} or '://' in str(words) else (f'--workdir={tmp_path / "a"}',)
    assert cli.main(['sweep', *(places.get(word, word) for word in words), *where]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count('\n') == 1 and not (tmp_path / 'a' / 'sweep.json').exists()


def test_the_view_tells_of_a_running_trial_whose_record_does_not_grow(file, tmp_path, capsys):
    sweep = listed(file, tmp_path / 'a', [{'seed': 1}])
    (trial,) = sweep.trials
    trial.directory.mkdir()
    record = trial.directory / records.RECORD
    record.write_text('{"step": 1, "loss": 3.0}\n')
    assert claims.Claims(sweep.directory).take(trial.id)
    view.show(sweep)
    assert 'without a new record' not in capsys.readouterr().out
    os.utime(record, (0, record.stat().st_mtime - 1860))
    view.show(sweep)
    assert f'{trial.id}  running, without a new record for 0:31:0' in capsys.readouterr().out


@pytest.fixture(scope='module')
def done(tmp_path_factory, cache):
    """Returns a directory with an experiment file and the sweep of two learning rates that the shell made of it."""
    folder = tmp_path_factory.mktemp('done')
    (folder / 'small.py').write_text(FILE)
    assert shell(folder, cache, '--over', 'optimizer.peak=1e-3,1e-2') == 0
    return folder


def shell(folder, cache, *words):
    where = ('--workdir', str(folder / 'sweep'), '--cache', str(cache))
    return cli.main(['sweep', str(folder / 'small.py'), *where, *words])


def touched(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob('metrics.jsonl')}


def test_every_trial_is_the_run_that_lm_train_makes(done, tmp_path, cache):
    about = json.loads((done / 'sweep' / 'sweep.json').read_text())
    assert about['experiment'] == str(done / 'small.py') and len(about['trials']) == 2
    (trial,) = [id for id, overrides in about['trials'].items() if overrides == {'optimizer.peak': 0.001}]
    where = ('--workdir', str(tmp_path), '--cache', str(cache))
    cli.main(['train', str(done / 'small.py'), 'optimizer.peak=1e-3', *where])
    assert losses(done / 'sweep' / trial) == losses(tmp_path) and len(losses(tmp_path)) == 6


def test_only_what_is_missing_is_trained(done, cache, capsys):
    before = touched(done)
    assert shell(done, cache, '--over', 'optimizer.peak=1e-3,1e-2') == 0 and touched(done) == before
    assert shell(done, cache, '--over', 'optimizer.peak=1e-2,2e-2') == 0
    assert len(touched(done)) == 3 and before.items() <= touched(done).items()
    assert '3 finished' in capsys.readouterr().out
    assert cli.main(['sweep', '--worker', str(done / 'sweep'), '--cache', str(cache)]) == 0
    assert cli.main(['sweep', '--watch', str(done / 'sweep'), '--trust']) == 0
    assert capsys.readouterr().out.count('optimizer.peak=0.02') == 2


def test_the_view_shows_states_and_the_best(done, monkeypatch):
    sweep = reopened(done / 'sweep')
    with claims.Claims(sweep.directory) as desk:
        now = view.status_of(sweep, desk)
        assert set(now.states.values()) == {'finished'} and now.seconds is None
        (sweep.trials[0].directory / 'checkpoints' / '6').rename(sweep.trials[0].directory / 'checkpoints' / 'gone')
        assert desk.take(sweep.trials[0].id)
        now = view.status_of(sweep, desk)
        (sweep.trials[0].directory / 'checkpoints' / 'gone').rename(sweep.trials[0].directory / 'checkpoints' / '6')
    assert now.states[sweep.trials[0].id] == 'running' and now.seconds == 0
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(view._table(sweep, now))
    text = console.export_text()
    best = view.best_loss(now, view.ranked(sweep, now)[0])
    assert f'best {best:.4f}: optimizer.peak=' in text and '1 running' in text


def test_two_workers_never_choose_the_same(file, tmp_path):
    sweep = listed(file, tmp_path / 'a', [{'seed': seed} for seed in range(5)])
    first, second = claims.Claims(sweep.directory), claims.Claims(sweep.directory)
    one, _ = worker.choose(sweep, first, 2)
    two, _ = worker.choose(sweep, second, 8)
    assert [len(one), len(two)] == [2, 3] and not {t.id for t in one} & {t.id for t in two}
    assert worker.choose(sweep, claims.Claims(sweep.directory)) == ([], True)


def test_trials_that_are_added_while_a_worker_runs_are_its_own(file, tmp_path, monkeypatch):
    def train(sweep, chosen, *_):
        listed(file, tmp_path / 'a', [{'seed': 3}, {'seed': 4}])
        for trial in chosen:
            worker.fail(trial, config.Error('not trained here'))
        return set()
    monkeypatch.setattr(worker, '_train', train)
    assert worker.work(listed(file, tmp_path / 'a', [{'seed': 1}, {'seed': 2}]), tmp_path) == 1
    found, _ = trials.states(reopened(tmp_path / 'a'))
    assert list(found.values()) == ['failed'] * 4


def test_sweeps_planned_at_once_list_the_trials_of_all(file, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: listed(file, tmp_path / 'a', [{'seed': seed}]), range(12)))
    assert {trial.overrides['seed'] for trial in reopened(tmp_path / 'a').trials} == set(range(12))


def test_a_trial_killed_before_its_last_validation_is_validated(done, tmp_path, cache):
    shutil.copytree(done / 'sweep', tmp_path / 'copy')
    sweep = reopened(tmp_path / 'copy')
    record = sweep.trials[0].directory / 'metrics.jsonl'
    whole = records.read(record.parent)
    record.write_text(''.join(record.read_text().splitlines(keepends=True)[:-1]))
    assert trials.states(sweep)[0][sweep.trials[0].id] == 'begun'
    assert worker.work(sweep, cache) == 0
    assert records.read(record.parent)[-1] == whole[-1]


def test_a_failed_trial_is_recorded_and_stops_no_other(done, cache, capsys):
    shell(done, cache, '--over', 'optimizer.peak=1e-2')
    base = config.load(done / 'small.py')
    sweep = trials.plan(base, done / 'sweep', [{'model.vocab': 300}, {'optimizer.peak': 1e-2}])
    assert worker.work(sweep, cache) == 1
    assert trials.states(sweep)[0][trials.identity(config.override(base.config, {'model.vocab': 300}))] == 'failed'
    (told,) = (json.loads(path.read_text())['error'] for path in (done / 'sweep').rglob('failed.json'))
    assert told.startswith('model.vocab=300 and the tokenizer has 258 tokens')
    assert f'failed  model.vocab=300: {told}' in capsys.readouterr().out


def test_a_full_disk_is_no_fault_of_a_trial(file, tmp_path, monkeypatch):
    def train(*_):
        raise config.Error('saving failed') from ValueError("cannot write [No space left on device, code='28']")
    monkeypatch.setattr(worker, '_train_one', train)
    sweep = listed(file, tmp_path / 'a', [{'seed': 1}])
    with pytest.raises(config.Error, match='cannot write to .*a: No space left on device; free some space'):
        worker.work(sweep, tmp_path)
    assert list(trials.states(sweep)[0].values()) == ['new']
    assert claims.Claims(sweep.directory).take(sweep.trials[0].id)


def test_a_directory_in_use_is_left_alone(file, tmp_path, cache, monkeypatch):
    sweep = listed(file, tmp_path / 'a', [{'seed': 1}])
    (trial,) = sweep.trials
    run = runs.Run(trial.directory, config.Experiment(trial.settings, {}, file))
    monkeypatch.setattr(worker.claims, 'PERIOD', 0)
    worker._train(sweep, [trial], cache, 1)
    run.close()
    assert trials.states(sweep)[0] == {trial.id: 'new'}
    assert not config.diff(runs.read(trial.directory, runs.trusted(trial.directory, True)), trial.settings)


def test_a_trial_that_cannot_be_written_and_garbled_claims_stop_no_worker(file, tmp_path, cache, monkeypatch, capsys):
    sweep = listed(file, tmp_path / 'a', [{'seed': 1}, {'seed': 2}, {'seed': 3}])
    blocked, claimed, free = sweep.trials
    blocked.directory.mkdir()
    damage.fifo(blocked.directory / records.RECORD)
    claims.Claims(sweep.directory)
    for name in (f'{claimed.id}.1', f'{claimed.id}.²', f'{free.id}.{"9" * 23}'):
        (sweep.directory / 'claims' / name).write_text('null')
    monkeypatch.setattr(claims, 'DEAD', 0.5)
    monkeypatch.setattr(claims, 'PERIOD', 0.1)
    assert worker.work(sweep, cache) == 1
    assert trials.states(sweep)[0] == {blocked.id: 'failed', claimed.id: 'finished', free.id: 'finished'}
    assert trials.reason(blocked).startswith(f'{blocked.directory} holds metrics.jsonl and no config.json of lm')
    shown = capsys.readouterr().err
    assert shown.count('\n') == 4 and all(line.startswith('lm: ') for line in shown.splitlines())
    assert f'{claimed.id}.1 cannot be read as a claim: the trial is free' in shown


def test_a_record_that_leads_to_itself_counts_as_none_and_is_told(file, tmp_path, capsys):
    sweep = listed(file, tmp_path / 'a', [{'seed': 1}])
    [trial] = sweep.trials
    trial.directory.mkdir()
    damage.loop(trial.directory / 'metrics.jsonl')
    assert trials.states(sweep)[0] == {trial.id: 'new'}
    assert 'metrics.jsonl: Too many levels of symbolic links; it counts as none.' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['search.json', 'sweep.json', 'claims', 'lock'])
def test_a_worker_over_a_damaged_list_is_one_line(file, tmp_path, cache, capsys, name):
    listed(file, tmp_path / 'a', [{'seed': 1}])
    path = tmp_path / 'a' / name
    damage.loop(path)
    command = ['sweep', *((str(file), f'--workdir={tmp_path}/a') if name == 'lock' else ('--worker', f'{tmp_path}/a'))]
    assert cli.main([*command, f'--cache={cache}']) == 2
    shown = capsys.readouterr().err
    assert shown.count('\n') == 1 and str(path.parent) in shown
