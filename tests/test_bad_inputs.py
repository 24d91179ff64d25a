"""2,000 bad inputs, of every field, flag, file, data file, variable and experiment file: none is a finding."""
import re

import bad_inputs
import pytest

from lm import config

COUNT, SEED = 2000, 11


@pytest.fixture(scope='module')
def kinds():
    with bad_inputs.workplace() as made:
        yield made


def test_bad_inputs_are_refused_in_a_line_or_harmless(kinds):
    outcomes = list(bad_inputs.cases(kinds, COUNT, SEED))
    assert abs(len(outcomes) - COUNT) < 2 * len(kinds)
    assert bad_inputs.findings(outcomes, SEED) == []
    ends = [outcome.end for outcome in outcomes]
    assert ends.count('refused') > COUNT / 2 and ends.count('harmless') > COUNT / 10
    assert ends.count('listed') < COUNT / 20


def test_a_case_is_the_same_again_and_others_are_of_other_seeds(kinds):
    for kind in kinds:
        one, again, other = (bad_inputs.attempt(kind, 3, seed) for seed in (5, 5, 6))
        assert one == again and (one.case, one.input) != (other.case, other.input)


def test_every_place_has_its_turn(kinds):
    names = [kind.name for kind in kinds]
    assert len({*names}) == len(names) == 9
    for kind in kinds:
        assert len({*kind.places}) > 3
    typed = next(kind for kind in kinds if kind.name == 'typed fields')
    assert {'optimizer.peak', 'model.width', 'Lion.peak', 'Files.pattern', 'Halving.factor'} <= {*typed.places}
    flags = next(kind for kind in kinds if kind.name == 'flags')
    assert {'train workdir', 'scaling predict', 'bisect b', 'plan price'} <= {*flags.places}


@pytest.mark.parametrize('run, fault', [
    (lambda: 1 / 0, 'ZeroDivisionError: division by zero at test_bad_inputs.py'),
    (lambda: exec('raise bad_inputs.Silent("x")', {'bad_inputs': bad_inputs}), 'silent: x'),
    (lambda: exec('raise SystemExit(3)'), 'SystemExit: 3'),
    (lambda: exec('raise Long("x" * 5000)', {'Long': type('Long', (config.Error,), {'__str__': lambda e: 'a' * 5000})}),
     'a message of 1 lines and 5000 characters'),
    (lambda: exec('while True: pass'), 'hang: more than 0.2 s'),
    (lambda: exec('try:\n while True: pass\nexcept BaseException: pass'), 'hang: more than 0.2 s')])
def test_what_the_product_must_not_do_is_a_finding(monkeypatch, run, fault):
    monkeypatch.setattr(bad_inputs, 'SECONDS', 0.2)
    kind = bad_inputs.Kind('a kind', 1, ['a place'], lambda place, rng: ('an input', run))
    outcome = bad_inputs.attempt(kind, 0, 0)
    assert outcome.end == 'finding' and outcome.fault.startswith(fault)
    shown = bad_inputs.findings([outcome, outcome], 7)
    assert shown[0] == f'2 x a kind: {outcome.fault}' and "--seed=7 --only='a kind 0'" in shown[1]
    assert re.search(r'^all +1 +0 +0 +0 +1 ', '\n'.join(bad_inputs.table([outcome], {})), re.M)


def test_a_refusal_in_a_line_is_none():
    kind = bad_inputs.Kind('a kind', 1, ['a place'], lambda *_: ('an input', lambda: config.override(3, {'a': 1})))
    assert bad_inputs.attempt(kind, 0, 0).end == 'refused'
