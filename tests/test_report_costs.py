"""Runs compared at equal tokens, FLOPs and seconds, and how much longer the baseline would take."""
import json
import re

import numpy as np
import pytest
import simulated
from simulated import BETTER, report

from lm.report import curves, show, study


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


def test_gain_is_how_much_longer_the_baseline_takes():
    x = np.arange(1, 101) * 1e4
    y = 2 + 50 * x ** -0.5
    losses = {'half': y[49], 'twice': 2 + 50 * 2e6 ** -0.5, 'never': 1.9, 'worse': 9.0}
    found = curves.gains(x, y, losses, 1e6)
    assert found['half'] == (pytest.approx(0.5), '', False)
    assert found['twice'] == (pytest.approx(2, rel=0.02), '', True)
    assert found['never'] == (curves.REACH, '>', True)
    assert found['worse'] == (0.01, '<', False)
    assert curves.gains(x, y, losses, 5e5)['half'] == (pytest.approx(1), '', False)
    assert curves.gains(x[-2:], y[-2:], losses, 1e6)['never'] == (1, '>', False)


def test_a_longer_baseline_has_no_gain_over_itself(tmp_path):
    for name, change, until in ('a', {}, 2000), ('b', {'optimizer.weight_decay': 0.2}, 1000):
        for seed in range(4):
            loss = 3 + 0.001 * seed + (until == 1000) * 3 * (1000 ** -0.5 - 2000 ** -0.5)
            simulated.write(tmp_path / f'{name}{seed}', {**change, 'steps': until}, loss, seed)
    family = study.read([tmp_path]).families['tokens']
    assert family.compared[0].difference == pytest.approx(0, abs=1e-9)
    assert next(iter(family.gains.values())).times == pytest.approx(1, rel=1e-6)


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
