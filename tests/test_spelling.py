"""Values as the text of an override: read back they are the same, and defaults are left out."""
import dataclasses
from typing import Any

import pytest

from lm import config
from lm.config.values import Text, fit


@dataclasses.dataclass(frozen=True)
class Position:
    """A position of a token."""


@dataclasses.dataclass(frozen=True)
class Rope(Position):
    base: float = 1e4
    factor: float = 1.0
    scales: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Mixed(Position):
    first: Position
    name: str = 'mixed'
    second: Position | None = Rope(base=2.0)
    rates: dict[str, float] = dataclasses.field(default_factory=lambda: {'a': 1.0})


@pytest.mark.parametrize('value, hint, text', [
    (Rope(), Position, 'Rope'),
    (Rope(base=500.0), Position, 'Rope(base=500.0)'),
    (Rope(1e4, 2.0, (3,)), Position, 'Rope(factor=2.0, scales=(3,))'),
    (Mixed(Rope()), Position, 'Mixed(first=Rope())'),
    (Mixed(Rope(5.0), 'it', Rope(), {'b': 2.0}), Position,
     "Mixed(first=Rope(base=5.0), name='it', second=Rope(), rates={'b': 2.0})"),
    (Mixed(Rope(), second=None), Position, 'Mixed(first=Rope(), second=None)'),
    ((1, 2), tuple[int, ...], '1,2'),
    (('rms', 'layer'), tuple[str, ...], 'rms,layer'),
    ((Rope(), Rope(5.0)), tuple[Position, ...], '(Rope(), Rope(base=5.0))'),
    ((), tuple[int, ...], '()'), (None, int | None, 'None'), (True, bool, 'True'), (0.003, float, '0.003'),
    ('a b', str, 'a b'), (7, Any, '7')])
def test_a_spelled_value_is_read_back(value, hint, text):
    assert config.spelled(value) == text
    assert fit(Text(text), hint, 'key', value) == value


def test_classes_and_functions_are_spelled_by_name():
    assert config.spelled(Rope) == 'Rope'
    assert config.spelled(config.spelled) == 'spelled'
