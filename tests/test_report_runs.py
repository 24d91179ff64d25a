"""Runs that are missing, extra, unfinished or far off: what they may change in a report, and what is said of them."""
import json

import numpy as np
import pytest
import simulated
from simulated import BETTER, report

from lm.report import comparisons, show, statistics, study
from lm.report.scores import Score

RATES = (1e-3, 3e-3, 1e-2)


def rates(directory, name, change, loss=3.0, seeds=5, without=()):
    """Writes a variant that is best at the middle of RATES, without some of its (rate, seed)."""
    shared, own = np.random.default_rng(0), np.random.default_rng(len(name) + ord(name[0]))
    offsets = 0.01 * shared.normal(size=seeds)
    for rate in RATES:
        for seed in range(seeds):
            drawn = loss + 0.1 * abs(RATES.index(rate) - 1) + offsets[seed] + 0.01 * own.normal()
            if (rate, seed) not in without:
                simulated.write(directory / f'{name}-{rate}-{seed}', {**change, 'optimizer.peak': rate}, drawn, seed)


def tokens(*directories, **options):
    return study.read(directories, study.Options(**options)).families['tokens']


@pytest.mark.parametrize('how, text', [
    (None, 'a run of seed 2/2 '),
    ({'until': 500}, 'b-2 (unfinished: at step 500 of 1000) '),
    ({'until': 500, 'bad': True}, 'b-2 (failed: loss not finite at step 500) ')])
def test_a_run_missing_at_the_best_rate_is_named_and_no_other_rate_stands_in(tmp_path, capsys, how, text):
    sweep = tmp_path / 'sweep'
    rates(sweep, 'a', {})
    rates(sweep, 'b', BETTER, without={(3e-3, 2)})
    if how:
        simulated.write(sweep / 'b-2', {**BETTER, 'optimizer.peak': 3e-3}, 3.0, 2, **how)
    family = tokens(sweep)
    assert family.scores['position=Alibi'].rate == 3e-3
    assert family.compared[0].verdict == 'undecided'
    assert f'{text}at the rate 0.003 is missing, where the best rate may lie; finish it' in show.notes(family)[0]
    assert report(sweep, '--expect', 'baseline < alibi') == 1
    capsys.readouterr()


def test_a_run_missing_at_a_bad_rate_and_one_too_many_change_nothing(tmp_path):
    rates(tmp_path / 'whole', 'a', {})
    rates(tmp_path / 'whole', 'b', BETTER, 2.9)
    rates(tmp_path / 'other', 'a', {})
    rates(tmp_path / 'other', 'b', BETTER, 2.9, without={(1e-3, 2)})
    simulated.write(tmp_path / 'other' / 'b-extra', {**BETTER, 'optimizer.peak': 1e-2}, 3.0, 9)
    for before, after in zip(tokens(tmp_path / 'whole').compared, tokens(tmp_path / 'other').compared, strict=True):
        assert (after.verdict, after.difference) == ('better', before.difference)


def test_a_run_not_begun_is_missing_like_others(tmp_path):
    sweep = tmp_path / 'sweep'
    rates(sweep, 'a', {})
    rates(sweep, 'b', BETTER, 2.9, without={(3e-3, 4), (1e-3, 4), (1e-2, 4)})
    key, alibi = 'model.layer.attention.position', BETTER['model.layer.attention.position']
    listed = {path.name: {'optimizer.peak': float(path.name[2:-2]), 'seed': int(path.name[-1]),
                          'data.seed': int(path.name[-1]), **({key: alibi} if path.name[0] == 'b' else {})}
              for path in [*sweep.iterdir(), *(sweep / f'b-{rate}-4' for rate in RATES)]}
    (sweep / 'sweep.json').write_text(json.dumps({'experiment': 'experiments/x.py', 'config': simulated.CONFIG,
                                                  'given': [], 'rule': None, 'trials': listed}))
    result = study.read([sweep])
    family = result.families['tokens']
    assert family.compared[0].verdict == 'undecided'
    assert ('b-0.003-4 (unfinished: not begun) at the rate 0.003 is missing, where the best rate may lie'
            in ' '.join(show.notes(family)))
    assert ('b-0.003-4', 'unfinished: not begun') in result.left_out


def test_an_outlier_at_the_best_rate_is_named_and_no_other_rate_stands_in(tmp_path):
    rates(tmp_path, 'a', {})
    rates(tmp_path, 'b', BETTER, without={(3e-3, 4)})
    simulated.write(tmp_path / 'far', {**BETTER, 'optimizer.peak': 3e-3}, 30.0, 4)
    family = tokens(tmp_path)
    assert family.scores['position=Alibi'].rate != 3e-3
    assert family.compared[0].verdict == 'undecided'
    assert 'far ended at 30, far from the other seeds of its rate' in ' '.join(show.notes(family))


def test_an_outlier_is_noted_and_widens_no_margin(tmp_path):
    simulated.sweep(tmp_path, {'a': ({}, 3.0), 'b': (simulated.SAME, 3.0)})
    before = study.read([tmp_path])
    path = tmp_path / 'a-4' / 'metrics.jsonl'
    simulated.write(tmp_path / 'new', {}, 30.0, 4)
    path.write_text((tmp_path / 'new' / 'metrics.jsonl').read_text())
    for file in (tmp_path / 'new').iterdir():
        file.unlink()
    (tmp_path / 'new').rmdir()
    result = study.read([tmp_path], study.Options(baseline='a-0'))
    family = result.families['tokens']
    assert 'baseline: a-4 ended at 30, far from the 3.006 of the other seeds: an outlier' in show.notes(family)[0]
    assert family.scores['baseline'].outliers == {(4, 4): 'a-4'}
    assert 0.5 * before.margin < result.margin < 2 * before.margin


def test_a_variant_noisier_than_the_baseline_is_said(tmp_path):
    simulated.sweep(tmp_path, {'a': ({}, 3.0)}, seeds=6)
    simulated.sweep(tmp_path, {'b': (simulated.SAME, 3.0)}, seeds=6, spread=0.1)
    notes = ' '.join(show.notes(tokens(tmp_path)))
    assert 'weight_decay=0.2: its losses vary 1' in notes and 'times as much over seeds' in notes


def test_a_variant_more_skewed_than_the_baseline_is_said():
    even, odd = (Score(dict(enumerate(losses)))
                 for losses in ((1, 2, 3, 4, 5, 6, 7), (1, 1.1, 1.2, 1.3, 1.4, 1.5, 9)))
    assert 'skewed over seeds (skewness +2.0, of the baseline +0.0)' in comparisons.compare('b', odd, even).notes[-1]
    assert comparisons.compare('b', even, odd).notes == ()


@pytest.mark.parametrize('size', [0.0141, 0.0149, 0.015, 0.0996, 0.994, 3.21, 12.2, 123.0, 1e-7, 0.05])
def test_a_margin_is_printed_no_smaller_than_it_is(size):
    text = comparisons.rounded_up(size)
    assert size <= float(text) < 1.1 * size
    c = comparisons.compare('a', *(Score(dict.fromkeys(range(3), loss)) for loss in (1.0, 1.0)))
    assert comparisons.judge([c], size)[0].verdict == f'no difference larger than {text}'


@pytest.mark.parametrize('text, message', [
    ('alibi < baseline by -1', 'by 0.01'), ('alibi < baseline by 1e999', 'by 0.01'),
    ('alibi = baseline within 1e999', 'within 0.01'), ('alibi = baseline within 0', 'within 0.01'),
    ('alibi = baseline within -0.1', 'within 0.01'),
    ('baseline = baseline within 0.1', 'compares baseline with itself'),
    ('alibi < alibi', 'compares position=Alibi with itself')])
def test_an_expectation_of_no_meaning_is_refused(swept, capsys, text, message):
    assert report(swept, '--expect', text) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1


def test_the_effect_is_named(swept):
    result = study.read([swept])
    assert 'in their standard deviations (d_z)' in ' '.join(show.footnotes(result, result.families['tokens']))


def test_a_noisy_group_has_no_outliers_and_a_wild_value_is_one():
    generator = np.random.default_rng(0)
    groups = [generator.normal(size=5), 8 * generator.normal(size=5), generator.normal(size=5)]
    assert not any(marks.any() for marks in statistics.outliers(groups))
    groups[0][2] = 60.0
    assert [marks.tolist() for marks in statistics.outliers(groups)] == [
        [False, False, True, False, False], [False] * 5, [False] * 5]


@pytest.mark.parametrize('value', ['NaN', 'Infinity', '-Infinity', '1e308', '1e400', 'null', '"3.0"', 'true', '[3.0]'])
def test_a_run_that_ends_at_no_finite_loss_has_failed_and_no_row_before_it_is_read(swept, capsys, value):
    path = swept / 'b-0' / 'metrics.jsonl'
    rows = path.read_text().splitlines()
    path.write_text('\n'.join([*rows[:-1], json.dumps({**json.loads(rows[-1]), 'valid/loss': '@'})]).replace(
        '"@"', value) + '\n')
    result = study.read([swept])
    assert ('b-0', 'failed: loss not finite at step 1000') in result.left_out
    assert result.families['tokens'].budget == 1000 * 1024
    assert {c.name: c.verdict for c in result.families['tokens'].compared}['position=Alibi'] == 'undecided'
    assert report(swept, '--expect', 'alibi < baseline') == 1
    assert max(map(len, capsys.readouterr().out.splitlines())) < 300


def test_another_metric_that_is_not_finite_has_failed(swept):
    path = swept / 'b-0' / 'metrics.jsonl'
    before, _, _ = path.read_text().rpartition('"valid/bits_per_byte": ')
    path.write_text(f'{before}"valid/bits_per_byte": Infinity}}\n')
    result = study.read([swept], study.Options(metric='valid/bits_per_byte'))
    assert ('b-0', 'failed: no finite valid/bits_per_byte at its last step') in result.left_out


def test_a_large_loss_makes_no_wide_cells(swept):
    path = swept / 'b-0' / 'metrics.jsonl'
    before, _, after = path.read_text().rpartition('"valid/loss": ')
    path.write_text(f'{before}"valid/loss": 1e30, {after.partition(", ")[2]}')
    rows = show.verdict_rows(study.read([swept]).families['tokens'])
    assert max(len(cell) for row in rows for cell in row) < 40
    assert next(row for row in rows if row[0] == 'position=Alibi')[2] == '+2e+29'


def test_a_run_counts_once_however_its_directory_is_spelled(swept, monkeypatch):
    before = study.read([swept], study.Options(baseline='a-0')).families['tokens']
    monkeypatch.chdir(swept.parent)
    (swept.parent / 'link').symlink_to(swept)
    for directories in ([swept, swept], [swept, swept / '..' / swept.name], [swept, swept / 'a-0'],
                        [swept / 'a-0', swept], [swept, 'link'], [swept.name, f'./{swept.name}/']):
        result = study.read(directories, study.Options(baseline='a-0'))
        assert sum(len(variant.trials) for variant in result.variants) == 15
        assert result.families['tokens'].compared == before.compared


def test_a_sweep_given_twice_is_planned_once(swept):
    (swept / 'sweep.json').write_text(json.dumps({
        'experiment': 'experiments/x.py', 'config': simulated.CONFIG, 'given': [], 'rule': None,
        'trials': {**{f'a-{seed}': {'seed': seed, 'data.seed': seed} for seed in range(5)},
                   'a-9': {'seed': 9, 'data.seed': 9}}}))
    assert study.read([swept, f'{swept}/../{swept.name}']).left_out == study.read([swept]).left_out == [
        ('a-9', 'unfinished: not begun')]


def test_the_runs_missing_at_several_rates_are_one_line(tmp_path):
    rates(tmp_path, 'a', {})
    for rate in RATES:
        for seed in range(4):
            simulated.write(tmp_path / f'b-{rate}-{seed}', {**BETTER, 'optimizer.peak': rate}, 2.9, seed, until=300)
    notes = [note for note in show.notes(tokens(tmp_path)) if note.startswith('position=Alibi: no verdict')]
    runs = ', '.join(f'b-{rate}-0 (unfinished: at step 300 of 1000) and 3 more at the rate {rate}' for rate in RATES)
    assert notes == [f'position=Alibi: no verdict: {runs} are missing, where the best rate may lie; finish them']


@pytest.mark.parametrize('slope, grid, added', [
    (1, (0.0, 0.1, 0.2), ()), (-1, (0.0, 0.1), (0.2, 0.4)), (-1, (0.0, 0.1, 0.3), (0.9, 2.7)),
    (1, (0.1, 0.2), (0.05, 0.025))])
def test_rates_may_begin_at_0(tmp_path, slope, grid, added):
    key = 'optimizer.weight_decay'
    for name, change in ('a', {}), ('b', BETTER):
        simulated.sweep(tmp_path / 'sweep', {f'{name}{value}': ({**change, key: value}, 3.0 + slope * value)
                                             for value in grid}, seeds=3)
    scored = tokens(tmp_path / 'sweep', rate=key).scores['baseline']
    assert scored.rate == grid[0 if slope > 0 else -1]
    assert scored.add == pytest.approx(added)
    assert any('tried: add' in note for note in scored.notes) == bool(added)


@pytest.mark.parametrize('values, named', [
    (('Linear', 'Cosine'), 'Cosine'), ((None, 0.1, 0.2), 'None'), ((-0.1, 0.1), '-0.1'), ((0.1, True), 'True')])
def test_a_swept_rate_that_is_no_number_is_one_line(tmp_path, capsys, values, named):
    for name, change in ('a', {}), ('b', BETTER):
        simulated.sweep(tmp_path / 'sweep', {f'{name}{value}': ({**change, 'optimizer.peak': value}, 3.0)
                                             for value in values}, seeds=2)
    assert report(tmp_path / 'sweep') == 2
    error = capsys.readouterr().err
    assert f'optimizer.peak={named}, which is no learning rate' in error and error.count('\n') == 1


def test_a_variant_without_a_rate_stands_beside_a_sweep_of_it(tmp_path, capsys):
    rates(tmp_path, 'a', {})
    simulated.sweep(tmp_path, {'b': ({**BETTER, 'optimizer.peak': None}, 2.8)})
    assert report(tmp_path, '--html', tmp_path / 'x.html') == 0
    assert tokens(tmp_path).scores['position=Alibi'].rate is None
    capsys.readouterr()


def test_a_baseline_of_one_seed_beside_another_length_of_five_has_no_noise_floor(tmp_path, capsys):
    simulated.write(tmp_path / 'base-0', {}, 3.0)
    simulated.sweep(tmp_path, {'long': ({'steps': 2000}, 2.9), 'b': ({**BETTER, 'steps': 2000}, 2.8)})
    assert report(tmp_path, '--baseline=base-0', '--html', tmp_path / 'x.html') == 0
    text = capsys.readouterr().out
    assert 'no noise floor: give --margin to test "no difference"' in text
    assert 'position=Alibi, steps=2000  better' in text


@pytest.mark.parametrize('file, content, message', [
    ('b-0/config.json', b'\xff\xfe', 'config.json is damaged (not UTF-8 at byte 0)'),
    ('b-0/config.json', b'[]', 'config.json is damaged (it is list, not a dict)'),
    ('b-0/config.json', {'command': None}, 'config.json is damaged (command is NoneType, not a list)'),
    ('b-0/config.json', {'steps': '9'}, 'has steps=9, which is no positive number'),
    ('b-0/config.json', {'steps': 0}, 'has steps=0, which is no positive number'),
    ('b-0/config.json', {'command': []}, ''), ('b-0/failed.json', b'', 'its failed.json cannot be read'),
    ('b-0/failed.json', b'{}', 'its failed.json cannot be read')])
def test_a_damaged_run_is_left_out_by_name_and_the_rest_stands(swept, capsys, file, content, message):
    _damage(swept / file, content)
    result = study.read([swept])
    left_out = dict(result.left_out)
    assert message in left_out['b-0'] if message else not left_out
    c = next(c for c in result.families['tokens'].compared if c.name == 'position=Alibi')
    assert c.verdict == ('undecided' if file.endswith('failed.json') else 'better') and c.seeds == 5 - bool(message)
    assert report(swept) == 0
    shown = capsys.readouterr()
    assert message in shown.out and not shown.err


@pytest.mark.parametrize('content, message', [
    (b'\xff', 'not UTF-8 at byte 0'), (b'[]', 'it is list, not a dict'), ({'trials': []}, 'trials is list, not a dict'),
    ({'trials': None}, 'trials is NoneType, not a dict'), ({'trials': {'a-9': None}}, 'trials.a-9 is NoneType'),
    ({'trials': {'../a': {}}}, "'../a' is no name of a trial")])
def test_a_damaged_list_of_trials_is_one_line_and_its_trials_can_be_read(swept, capsys, content, message):
    _damage(swept / 'sweep.json', content)
    assert report(swept) == 2
    shown = capsys.readouterr().err
    assert f'{swept}/sweep.json is damaged ({message}' in shown and shown.count('\n') == 1
    assert report(*swept.glob('*-*')) == 0
    assert 'better' in capsys.readouterr().out


def _damage(path, content):
    """Writes bytes to a file, or changes items of its JSON; steps are those of its configuration."""
    if isinstance(content, dict):
        about = json.loads(path.read_text()) if path.exists() else {
            'experiment': 'experiments/x.py', 'config': simulated.CONFIG, 'given': [], 'rule': None, 'trials': {}}
        about = {**about, **{key: value for key, value in content.items() if key != 'steps'}}
        about['config'] = {**about['config'], **{key: value for key, value in content.items() if key == 'steps'}}
        content = json.dumps(about).encode()
    path.write_bytes(content)


def test_what_a_directory_holds_beside_runs_is_named(swept, tmp_path, capsys):
    (swept / 'inner').mkdir()
    (swept / 'inner' / 'sweep.json').write_text('{}')
    simulated.write(swept / 'group' / 'z', {}, 3.0)
    (swept / 'lost').mkdir()
    (swept / 'lost' / 'metrics.jsonl').write_text('{"step": 1, "loss": 2.0}\n')
    (swept / 'gone').symlink_to(swept / 'nowhere')
    (swept / 'notes').mkdir()
    left_out = dict(study.read([swept]).left_out)
    assert left_out == {'inner': f'it holds runs of its own; give {swept}/inner too',
                        'group': f'it holds runs of its own; give {swept}/group too',
                        'gone': 'a link that leads nowhere', 'lost': 'its config.json is missing'}
    assert dict(study.read([swept, swept / 'group']).left_out).keys() == {'inner', 'gone', 'lost'}
    assert report(tmp_path) == 2
    assert f'no run in {tmp_path} (sweep: it holds runs of its own' in capsys.readouterr().err
