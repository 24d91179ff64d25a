"""Runs compared at equal tokens, FLOPs and seconds, and how much longer the baseline would take."""
import json
import math
import re

import numpy as np
import pytest
import simulated
from simulated import BETTER, report

from lm.report import show, study


def verdicts(found, axis):
    return {c.name: c.verdict for c in found.families[axis].compared}


def test_seconds_count_the_slower_variant_less_far(tmp_path):
    for name, change, speed in ('a', {}, 2e4), ('b', BETTER, 1e4):
        for seed in range(5):
            simulated.write(tmp_path / f'{name}{seed}', change, 3.0 + 0.001 * seed, seed, speed=speed)
    found = study.read([tmp_path])
    assert found.families['tokens'].compared[0].difference == pytest.approx(0, abs=1e-9)
    halfway = 3 * (1 / 500 ** 0.5 - 1 / 1000 ** 0.5)
    assert found.families['seconds'].compared[0].difference == pytest.approx(halfway, rel=1e-6)
    assert verdicts(found, 'seconds') == {'position=Alibi': 'worse'}


def test_a_slow_moment_of_the_machine_does_not_count(swept):
    for seed in range(5):
        path = swept / f'b-{seed}' / 'metrics.jsonl'
        before, _, after = path.read_text().rpartition('"tokens_per_second": 10000.0')
        path.write_text(f'{before}"tokens_per_second": 100.0{after}')
    assert verdicts(study.read([swept]), 'seconds')['position=Alibi'] == 'better'


def test_runs_of_one_program_are_not_compared_by_its_seconds(swept, tmp_path):
    for path in swept.glob('*/config.json'):
        about = json.loads(path.read_text())
        path.write_text(json.dumps({**about, 'command': ['lm', 'sweep', 'experiments/x.py', '--together=15']}))
    found = study.read([swept])
    assert found.families['seconds'].compared == []
    assert 'one program' in show.as_text(found, [])
    assert report(swept, '--html', tmp_path / 'report.html') == 0
    page = (tmp_path / 'report.html').read_text()
    assert '10,000 shared' in page
    assert 'against seconds' not in page


def test_flops_count_the_wider_model_less_far(tmp_path):
    for name, change in ('a', {}), ('b', {'model.width': 128}):
        for seed in range(4):
            simulated.write(tmp_path / f'{name}{seed}', change, 3.0 + 0.001 * seed, seed)
    found = study.read([tmp_path])
    flops = found.table.flops.values()
    assert max(flops) > 2 * min(flops) > 0
    assert found.families['flops'].budget == pytest.approx(min(flops) * 1000 * 16 * 64)
    assert verdicts(found, 'flops') == {'width=128': 'worse'}


def test_variants_that_cost_the_same_in_other_ways_have_no_table_of_flops(tmp_path):
    untied = {'model.head': {'type': 'lm.models:Head', 'tied': False}}
    simulated.sweep(tmp_path, {'a': ({}, 3.0), 'b': (untied, 2.9)}, seeds=2)
    found = study.read([tmp_path])
    assert len(found.table.flops) == 2
    assert found.families['flops'].why.startswith('all variants have the same FLOPs per token')


def final(steps):
    """The final loss of the baseline after so many steps."""
    return 2.5 + 10 * steps ** -0.4


def lengths(directory, *steps, seeds=4):
    """Writes the baseline at several lengths."""
    for length in steps:
        for seed in range(seeds):
            simulated.write(directory / f'a{length}-{seed}', {'steps': length}, final(length) + 0.001 * seed, seed)


@pytest.mark.parametrize('true', [0.5, 2.0])
def test_gain_is_how_much_longer_the_baseline_takes_to_end_at_the_loss(tmp_path, true):
    lengths(tmp_path, 1000, 500, 2000)
    for seed in range(4):
        loss = final(true * 1000) + 0.001 * seed + 1e-4 * (-1) ** seed
        simulated.write(tmp_path / f'b{seed}', BETTER, loss, seed)
    found = study.read([tmp_path], study.Options(baseline='a1000-0'))
    family = found.families['tokens']
    gain = family.gains['position=Alibi']
    assert gain.times == pytest.approx(true, rel=0.01)
    assert gain.interval[0] <= true <= gain.interval[1]
    assert [c.name for c in family.compared] == ['position=Alibi']
    assert 'from final losses of the baseline at 3 lengths' in ' '.join(show.footnotes(found, family))
    assert [row[1] for row in show.verdict_rows(family) if row[0].startswith('steps=')] == ['another length'] * 2


def test_a_gain_beyond_the_lengths_is_a_bound(tmp_path):
    lengths(tmp_path, 1000, 500, 2000)
    for name, change, loss in ('b', BETTER, final(4000)), ('c', simulated.SAME, final(200)):
        for seed in range(4):
            simulated.write(tmp_path / f'{name}{seed}', change, loss + 0.001 * seed, seed)
    family = study.read([tmp_path], study.Options(baseline='a1000-0')).families['tokens']
    assert family.gains['position=Alibi'] == (2.0, '>', (2.0, math.inf))
    assert family.gains['weight_decay=0.2'] == (0.5, '<', (0.0, 0.5))
    rows = {row[0]: row for row in show.verdict_rows(family)}
    assert rows['position=Alibi'][5] == '>2.00x [2.00, -]'


@pytest.mark.parametrize('losses', [{500: 3.0, 1000: 3.1, 2000: 3.2}, {500: 3.2, 1000: 3.0, 2000: 3.1},
                                    {500: 3.0, 1000: 3.05, 2000: 2.99}])
def test_losses_that_rise_with_length_make_no_gain(tmp_path, losses):
    generator = np.random.default_rng(0)
    for steps, loss in losses.items():
        for seed in range(4):
            simulated.write(tmp_path / f'a{steps}-{seed}', {'steps': steps}, loss + 1e-3 * generator.normal(), seed)
    for seed in range(4):
        simulated.write(tmp_path / f'b{seed}', BETTER, 2.95 + 1e-3 * generator.normal(), seed)
    result = study.read([tmp_path], study.Options(baseline='a1000-0'))
    family = result.families['tokens']
    assert family.compared[0].verdict == 'better' and family.gains == {}
    assert show.verdict_rows(family)[1][5] == ''
    assert "The baseline's final losses rise with its length" in ' '.join(show.footnotes(result, family))


def test_from_one_length_only_the_direction_of_a_gain_is_known(swept):
    found = study.read([swept], study.Options(margin=0.05))
    family = found.families['tokens']
    assert family.gains == {}
    assert {row[0]: row[5] for row in show.verdict_rows(family)} == {
        'baseline': '', 'position=Alibi': '>1x', 'weight_decay=0.2': ''}
    assert 'run it with steps=500 and with steps=2000 too' in ' '.join(show.footnotes(found, family))


def test_a_variant_is_compared_with_the_baseline_of_its_length(tmp_path):
    lengths(tmp_path, 1000, 500)
    for seed in range(4):
        simulated.write(tmp_path / f'b{seed}', {**BETTER, 'steps': 500}, final(500) + 0.001 * seed, seed)
    found = study.read([tmp_path], study.Options(baseline='a1000-0'))
    family = found.families['tokens']
    assert family.compared[0].difference == pytest.approx(0, abs=1e-9)
    assert 'compared with the baseline of steps=500' in ' '.join(show.notes(family))
    assert family.gains['position=Alibi, steps=500'].times == pytest.approx(1, rel=1e-6)


def test_a_stray_short_run_sets_no_budget_but_its_own(swept):
    before = study.read([swept]).families['tokens']
    simulated.write(swept / 'd-0', {'steps': 100, 'model.depth': 9}, 3.2)
    family = study.read([swept]).families['tokens']
    assert [c.difference for c in family.compared] == [c.difference for c in before.compared]
    assert [c.verdict for c in family.compared] == [c.verdict for c in before.compared]
    assert family.budget == before.budget == 1000 * 1024
    assert family.budgets['depth=9, steps=100'] == 100 * 1024
    assert ('depth=9, steps=100: compared at 102,400 tokens, its end; the baseline is read there before its end at '
            '1,024,000, while its learning rate has not decayed: no verdict; train both as long') in show.notes(family)


def test_losses_on_other_validation_batches_are_another_measurement(tmp_path):
    for name, change, steps in ('a', {}, 1000), ('b', BETTER, 500):
        for seed in range(4):
            simulated.write(tmp_path / f'{name}{seed}', {**change, 'steps': steps, 'cadence.eval_batches': 10},
                            3.0 + 0.001 * seed, seed)
    family = study.read([tmp_path]).families['tokens']
    assert family.compared[0].verdict == 'undecided'
    assert 'on all batches and the baseline on 10 (cadence.eval_batches)' in ' '.join(show.notes(family))


def test_bits_per_byte_where_tokenizers_differ(tmp_path):
    simulated.write(tmp_path / 'a', {}, 3.0)
    assert study.read([tmp_path]).metric == 'valid/loss'
    simulated.write(tmp_path / 'b', {'data.tokenizer': {'type': 'lm.data.tokenizers:Chars'}}, 3.0)
    assert study.read([tmp_path]).metric == 'valid/bits_per_byte'


def test_how_much_text_a_token_holds_is_said_where_it_differs(tmp_path):
    for name, kind, loss in ('a', 'Bytes', 1.5), ('b', 'Chars', 3.0):
        for seed in range(3):
            change = {'data.tokenizer': {'type': f'lm.data.tokenizers:{kind}'}}
            path = simulated.write(tmp_path / f'{name}{seed}', change, loss, seed) / 'metrics.jsonl'
            if kind == 'Chars':
                path.write_text(re.sub(r'(bits_per_byte": )([\d.]+)', lambda m: m[1] + str(float(m[2]) / 2),
                                       path.read_text()))
    found = study.read([tmp_path])
    assert 'Bytes per token: 1.00 in baseline, 2.00 in tokenizer=Chars' in ' '.join(
        show.footnotes(found, found.families['tokens']))


@pytest.mark.parametrize('steps', [{'b': 500}, {'a': 500}])
def test_no_verdict_rests_on_a_loss_whose_rate_has_not_decayed(tmp_path, capsys, steps):
    for name, change, loss in ('a', {}, 3.0), ('b', BETTER, 2.5):
        for seed in range(5):
            change = {**change, 'steps': steps.get(name, 1000)}
            simulated.write(tmp_path / f'{name}-{seed}', change, loss + 0.001 * seed + 1e-4 * (-1) ** seed, seed)
    family = study.read([tmp_path], study.Options(baseline='a-0')).families['tokens']
    assert family.compared[0].p < 1e-4 and family.compared[0].verdict == 'undecided'
    assert show.verdict_rows(family)[1][1] == 'undecided: see below'
    cut = [note for note in show.notes(family) if 'before its end at 1,024,000' in note]
    assert len(cut) == 1 and cut[0].startswith('position=Alibi')
    for text in 'b-0 < a-0', 'a-0 > b-0 by 0.1', 'a-0 < b-0', 'b-0 = a-0 within 9':
        assert report(tmp_path, '--baseline=a-0', '--expect', text) == 1
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('NOT established'))
        assert 'before its end at 1,024,000, while its learning rate has not decayed' in line


def test_a_side_cut_is_named_where_neither_is_the_baseline(tmp_path, capsys):
    for name, change, steps in ('a', {}, 1000), ('b', BETTER, 1000), ('c', simulated.SAME, 500):
        for seed in range(3):
            simulated.write(tmp_path / f'{name}-{seed}', {**change, 'steps': steps}, 3 + 0.001 * seed, seed)
    assert report(tmp_path, '--baseline=a-0', '--expect', 'c-0 > b-0') == 1
    assert 'weight_decay=0.2, steps=500 is read' not in (said := capsys.readouterr().out)
    assert 'position=Alibi: compared at 512,000 tokens, the end of weight_decay=0.2, steps=500; it is read' in said
