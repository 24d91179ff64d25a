"""Runs on disk to verdicts, expectations and the page; their losses are drawn, not trained."""
import json
import re

import numpy as np
import pytest
import simulated
from simulated import BETTER, report

from lm.config import Error
from lm.report import expectations, provenance, show, study, trials, variants

SWEEP = {'experiment': 'experiments/x.py', 'config': simulated.CONFIG, 'given': [], 'rule': None}


def verdicts(found):
    return {c.name: c.verdict for c in found.families['tokens'].compared}


def test_a_variant_is_what_remains_without_seeds(swept):
    found = study.read([swept], study.Options(margin=0.05))
    assert [(v.name, len(v.trials)) for v in found.variants] == [('baseline', 5), ('position=Alibi', 5),
                                                                ('weight_decay=0.2', 5)]
    assert verdicts(found) == {'position=Alibi': 'better', 'weight_decay=0.2': 'no difference larger than 0.05'}
    assert all(c.paired for c in found.families['tokens'].compared)


def test_directories_by_hand_are_the_sweep(swept):
    by_hand = study.read(sorted(swept.iterdir()))
    assert verdicts(by_hand) == verdicts(study.read([swept]))
    assert by_hand.families['tokens'].compared == study.read([swept]).families['tokens'].compared


def test_another_baseline_turns_the_verdict_round(swept):
    found = study.read([swept], study.Options(baseline='alibi'))
    assert found.variants[0].name == 'baseline'
    assert verdicts(found)['position=Rope'] == 'worse'


def test_settings_that_only_say_how_to_run_make_no_variant(tmp_path):
    simulated.sweep(tmp_path, {'a': ({}, 3.0), 'b': ({'cadence.eval': 7, 'zero': True}, 3.0)}, seeds=2)
    with pytest.raises(Error, match='a-0 and .*b-0 have the same settings and seeds'):
        variants.gather(trials.read([tmp_path])[0], 'optimizer.peak')


def test_runs_alike_are_told_apart_by_their_directories(tmp_path):
    for name, loss in ('before', 3.0), ('after', 2.9):
        simulated.sweep(tmp_path / name, {'a': ({}, loss)})
    found = study.read([tmp_path / 'before', tmp_path / 'after'])
    assert list(verdicts(found).values()) == ['better']
    assert expectations.check(['after < before by 0.05'], found)[0].established


def test_the_baseline_of_a_sweep_is_the_trial_that_changes_nothing(swept):
    listed = {f'c-{seed}': {'optimizer.weight_decay': 0.2, 'seed': seed} for seed in range(5)} | {'new': {}}
    (swept / 'sweep.json').write_text(json.dumps({**SWEEP, 'config': simulated.changed(BETTER), 'trials': listed}))
    found = study.read([swept])
    assert found.variants[0].trials[0].name == 'b-0'
    assert 'the baseline has model.layer.attention.position=Alibi' in show.heading(found, found.families['tokens'])
    assert ('new', 'not begun') in found.left_out


def test_why_a_trial_of_a_sweep_failed_is_said(swept):
    (swept / 'b-0' / 'failed.json').write_text(json.dumps({'error': 'no memory left'}))
    assert ('b-0', 'failed: no memory left') in study.read([swept]).left_out


@pytest.mark.parametrize('best, added', [(0, '0.0003 and 0.0001'), (2, '0.03 and 0.1'), (1, None)])
def test_a_winner_on_the_edge_of_its_rates_is_refused(tmp_path, best, added):
    grid = [1e-3, 3e-3, 1e-2]
    for name, change, loss, at in ('a', {}, 3.0, 1), ('b', BETTER, 2.8, best):
        simulated.sweep(tmp_path / 'sweep', {f'{name}{rate}': ({**change, 'optimizer.peak': rate},
                                                              loss + 0.1 * abs(i - at)) for i, rate in enumerate(grid)})
    family = study.read([tmp_path / 'sweep']).families['tokens']
    assert family.compared[0].verdict == ('better' if added is None else 'undecided')
    said = show.notes(family)
    numbers = [float(n) for n in re.findall(r'[\d.e-]+', said[0].partition('add')[2])] if added else []
    assert numbers == pytest.approx([float(n) for n in added.split(' and ')] if added else [], rel=0.15)


def test_each_variant_is_compared_at_its_own_best_rate(tmp_path):
    for name, change, best in ('a', {}, 1), ('b', BETTER, 2):
        simulated.sweep(tmp_path / 'sweep', {f'{name}{i}': ({**change, 'optimizer.peak': rate}, 3 + 0.1 * abs(i - best))
                                             for i, rate in enumerate([1e-4, 1e-3, 1e-2, 1e-1])})
    found = study.read([tmp_path / 'sweep'])
    assert {name: score.rate for name, score in found.families['tokens'].scores.items()} == {
        'baseline': 1e-3, 'position=Alibi': 1e-2}
    assert abs(found.families['tokens'].compared[0].difference) < 0.02


def test_one_rate_each_is_a_setting_like_others(tmp_path):
    simulated.sweep(tmp_path / 'sweep', {'a': ({}, 3.0), 'b': ({**BETTER, 'optimizer.peak': 1e-3}, 2.9)})
    found = study.read([tmp_path / 'sweep'])
    assert verdicts(found) == {'position=Alibi, peak=0.001': 'better'}
    assert found.untuned == 'optimizer.peak'


def test_rates_alone_are_variants(tmp_path):
    simulated.sweep(tmp_path / 'sweep', {f'a{rate}': ({'optimizer.peak': rate}, 3.0) for rate in (1e-3, 1e-2)})
    found = study.read([tmp_path / 'sweep'])
    assert [v.name for v in found.variants] == ['baseline', 'peak=0.01']
    assert found.untuned == ''


def test_a_failed_seed_is_shown_and_wins_nothing(swept):
    simulated.write(swept / 'b-9', BETTER, 2.9, 9, bad=True, until=500)
    found = study.read([swept])
    assert ('b-9', 'failed: loss not finite at step 500') in found.left_out
    assert verdicts(found)['position=Alibi'] == 'undecided'
    assert show.notes(found.families['tokens']) == [
        'position=Alibi: no verdict: b-9 (failed: loss not finite at step 500) is missing; finish it']


def test_a_finished_run_without_the_metric_counts_as_failed(swept):
    path = swept / 'b-0' / 'metrics.jsonl'
    path.write_text(path.read_text().replace('"valid/bits_per_byte"', '"other"'))
    found = study.read([swept], study.Options(metric='valid/bits_per_byte'))
    assert ('b-0', 'failed: no finite valid/bits_per_byte at its last step') in found.left_out
    assert verdicts(found)['position=Alibi'] == 'undecided'


def test_an_unfinished_run_is_named_and_left_out(swept):
    simulated.write(swept / 'b-9', BETTER, 1.0, 9, until=500)
    found = study.read([swept])
    assert ('b-9', 'unfinished: at step 500 of 1000') in found.left_out
    assert found.families['tokens'].compared[0].seeds == 5


def test_seeds_that_a_rule_left_over_win_nothing(swept):
    simulated.write(swept / 'b-9', BETTER, 5.0, 9, until=500)
    (swept / 'sweep.json').write_text(json.dumps({
        **SWEEP, 'rule': {'type': 'lm.sweep.rules:Halving'}, 'trials': {'a-0': {}}}))
    family = study.read([swept]).families['tokens']
    assert {c.name: c.verdict for c in family.compared}['position=Alibi'] == 'undecided'
    assert 'no fair sample' in show.notes(family)[0]


def test_a_note_is_told_once_of_all_it_is_about(tmp_path):
    for name, change in ('a', {}), ('b', BETTER), ('c', simulated.SAME):
        simulated.sweep(tmp_path / 'sweep', {f'{name}{rate}': ({**change, 'optimizer.peak': rate}, 3.0 - rate)
                                             for rate in (1e-1, 3e-1)})
    said = show.notes(study.read([tmp_path / 'sweep']).families['tokens'])
    assert len(said) == 1
    assert all(name in said[0] for name in ('baseline', 'Alibi', 'weight_decay=0.2', 'the highest tried'))


def test_variants_are_in_the_order_of_their_losses(tmp_path):
    simulated.sweep(tmp_path, {'a': ({}, 3.0), **{f'b{i}': ({'model.depth': 3 + i}, loss)
                                                  for i, loss in enumerate((3.3, 2.7, 3.1))}})
    found = study.read([tmp_path])
    assert [row[0] for row in show.verdict_rows(found.families['tokens'])] == [
        'baseline', 'depth=4', 'depth=5', 'depth=3']


def test_sources_are_one_family(tmp_path):
    generator = np.random.default_rng(0)
    for name, change, code in ('a', {}, 2.0), ('b', BETTER, 1.5):
        for seed in range(5):
            losses = {'code': code + 0.01 * generator.normal(), 'prose': 3 + 0.01 * generator.normal()}
            simulated.write(tmp_path / f'{name}{seed}', change, 3 + 0.01 * generator.normal(), seed, sources=losses)
    found = study.read([tmp_path], study.Options(margin=0.05))
    assert {name: family.compared[0].verdict for name, family in found.sources.items()} == {
        'code': 'better', 'prose': 'no difference larger than 0.05'}
    code = found.sources['code'].compared[0]
    assert code.p == pytest.approx(2 * code.p_raw)


@pytest.mark.parametrize('text, code', [
    ('alibi < baseline by 0.05', 0), ('alibi < baseline by 0.2', 1), ('baseline < alibi', 1), ('baseline > alibi', 0),
    ('weight_decay=0.2 = baseline within 0.05', 0), ('alibi = baseline within 0.05', 1), ('b-0 < a-0 by 0.05', 0)])
def test_an_expectation_is_an_exit_code(swept, capsys, text, code):
    assert report(swept, '--expect', text) == code
    assert ('NOT established' in capsys.readouterr().out) == bool(code)


@pytest.mark.parametrize('text, said', [
    ('alibi better', 'cannot be read'), ('alibi = baseline', 'cannot be read'), ('alibo < baseline', 'did you mean'),
    ('alibi < baseline by 1e', 'cannot be read'), ('= < baseline', 'may be')])
def test_an_expectation_that_cannot_be_read_is_one_line(swept, capsys, text, said):
    assert report(swept, '--expect', text) == 2
    assert said in capsys.readouterr().err


def test_one_seed_establishes_nothing(tmp_path, capsys):
    simulated.write(tmp_path / 'a', {}, 3.0)
    simulated.write(tmp_path / 'b', BETTER, 2.0)
    assert report(tmp_path, '--expect', 'b < a') == 1
    said = capsys.readouterr().out
    assert 'nothing can be concluded from one seed' in said
    assert 'better' not in said


def test_json_holds_every_number(swept, capsys):
    assert report(swept, '--json') == 0
    found = json.loads(capsys.readouterr().out)
    c = found['equal']['tokens']['compared'][0]
    assert (c['name'], c['verdict'], c['paired'], c['seeds']) == ('position=Alibi', 'better', True, 5)
    assert c['interval'][0] < c['difference'] < c['interval'][1] < 0


def test_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    simulated.write(tmp_path / 'short' / 'a', {}, 3.0, until=50)
    simulated.write(tmp_path / 'long' / 'a', {}, 3.0, until=200)
    for given, said in (['empty'], 'no run in'), (['none'], 'is no directory'), (['short'], 'no valid/loss'), \
            (['long'], 'at step 200 of 1000'), ([], 'no run in no directory'):
        assert report(*(tmp_path / name for name in given)) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count('\n') == 1


@pytest.mark.parametrize('flag, said', [
    ('--margin=-1', 'no size of a difference'), ('--rate=optimizer.paek', "did you mean 'optimizer.peak'"),
    ('--metric=valid/los', 'no finished run has recorded'), ('--baseline=alibo', 'did you mean')])
def test_an_option_that_fits_nothing_is_one_line(swept, capsys, flag, said):
    assert report(swept, flag) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count('\n') == 1


def test_runs_scored_on_other_data_are_not_compared(swept, capsys):
    simulated.write(swept / 'd-0', {'data.valid': {'type': 'lm.data.sources:Synthetic', 'count': 9}}, 2.0)
    assert report(swept) == 2
    assert '2 different data.valid, whose losses do not compare' in capsys.readouterr().err


def test_a_thousand_trials_are_read_once(tmp_path):
    for i in range(200):
        simulated.sweep(tmp_path, {f'v{i}': ({'model.depth': i + 1}, 3.0)}, seeds=5)
    groups = variants.gather(trials.read([tmp_path])[0], 'optimizer.peak')
    assert len(groups) == 200
    assert {len(v.trials) for v in groups} == {5}


@pytest.mark.parametrize('dumped, word', [
    ({'type': 'lm.positions:Rope', 'base': 500.0, 'factor': 1.0}, "'model.position=Rope(base=500.0)'"),
    ({'type': 'lm.nn:Rope', 'base': 10000.0, 'factor': 1.0}, 'model.position=Rope'),
    ({'type': 'lm.nn:Gone', 'base': 500.0, 'inner': {'type': 'lm.nn:Rope', 'base': 9.0}},
     "'model.position=Gone(base=500.0, inner=Rope(base=9.0))'"),
    ({'type': 'tuple', 'value': [1, 2]}, 'model.position=1,2')])
def test_the_command_that_repeats_a_trial_names_what_differs_from_defaults(swept, dumped, word):
    (swept / 'sweep.json').write_text(json.dumps({
        **SWEEP, 'given': ['steps=1000', 'model.depth=2'], 'trials': {'b-0': {'model.position': dumped, 'seed': 3}}}))
    trial = next(t for t in trials.read([swept])[0] if t.name == 'b-0')
    assert provenance.command(trial) == f'lm train experiments/x.py steps=1000 model.depth=2 {word} seed=3'
