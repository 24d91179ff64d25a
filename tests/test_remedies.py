"""What a refusal says to try: keys as they are typed, and values that work when they are followed."""
import pathlib
import re
import shlex

import pytest

from lm import config

TINY = pathlib.Path(__file__).parents[1] / 'experiments' / 'tiny.py'
ATTENTION = 'model.layer.attention'


@pytest.mark.parametrize('overrides, message', [
    ([f'{ATTENTION}.heads=3'],
     f'width=64 is not a multiple of heads=3; try model.width=63 {ATTENTION}.head_dim=22.'),
    ([f'{ATTENTION}.heads=3', 'model.width=63'],
     f'head_dim=21 is odd and Rope turns pairs; try {ATTENTION}.head_dim=22.'),
    ([f'{ATTENTION}.heads=7'], 'width=64 is not a multiple of heads=7; try model.width=63 '
                               f'{ATTENTION}.head_dim=10.'),
    (['steps=6'], 'warmup=10 is more than steps=6; try optimizer.schedule.warmup=0.'),
    (['model.depth=x'], 'model.depth=x is not an int; try model.depth=2.'),
    (['optimizer=Muon(peak=1e-2'], "optimizer=Muon(peak=1e-2 lacks ')' at its end; try optimizer=Muon(peak=1e-2)."),
    ([f'{ATTENTION}.position=Rope(base=3'], f"{ATTENTION}.position=Rope(base=3 lacks ')' at its end; "
                                            f'try {ATTENTION}.position=Rope(base=3).'),
])
def test_a_remedy_that_is_followed_works(overrides, message):
    with pytest.raises(config.Error) as error:
        config.load(TINY, overrides)
    assert str(error.value) == message
    remedies = shlex.split(re.search(r'try (.*)\.$', message)[1].replace('(', '\\(').replace(')', '\\)'))
    keys = {remedy.partition('=')[0] for remedy in remedies}
    config.load(TINY, [*(text for text in overrides if text.partition('=')[0] not in keys), *remedies])


def test_brackets_too_many_are_told_from_an_unknown_name():
    with pytest.raises(config.Error, match=r'^optimizer=Muon\(\)\) is no constructor expression; write it as Name\(f'):
        config.load(TINY, ['optimizer=Muon())'])
    with pytest.raises(config.Error, match='^optimizer=Moun is not a component that fits here; did you mean .*Muon'):
        config.load(TINY, ['optimizer=Moun'])


def test_names_are_read_whatever_their_case():
    assert type(config.load(TINY, ['optimizer=adamw']).config.optimizer).__name__ == 'AdamW'
