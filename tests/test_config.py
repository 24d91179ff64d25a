from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm import config
from lm.commands.config import shown
from lm.config.values import Text


@dataclasses.dataclass(frozen=True)
class Schedule:
    warmup: int = 0


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    end: float = 0.1


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    stop: int = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Rope:
    theta: float = 1e4


@dataclasses.dataclass(frozen=True)
class Alibi:
    pass


@dataclasses.dataclass(frozen=True)
class Model:
    depth: int = 6
    width: int = 64
    heads: int = 4
    dropout: float = 0.0
    tied: bool = True
    norm: Literal['rms', 'layer', 'layer_bias'] = 'rms'
    position: Rope | Alibi | None = Rope()
    window: int | None = None
    pattern: tuple[int, ...] = (1, 1)

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f'width={self.width} is not a multiple of heads={self.heads}; try width=256.')


@dataclasses.dataclass(frozen=True)
class Experiment:
    model: Model = Model()
    schedule: Schedule = Cosine(warmup=100)
    mesh: dict[str, int] | str = dataclasses.field(default_factory=lambda: {'data': -1, 'fsdp': 1})
    scale: dict[str, float] = dataclasses.field(default_factory=dict)
    files: str | tuple[str, ...] = 'a.txt'
    sources: tuple[Schedule, ...] = (Schedule(1), Cosine(2))
    anything: Any = None
    seed: int | float | str = 0


BASE = Experiment(scale={'mlp.*': 0.5})


def shell(**changes):
    """Returns BASE overridden by texts; `__` in a name stands for a dot."""
    return config.override(BASE, {key.replace('__', '.'): Text(value) for key, value in changes.items()})


def refusal(key, value):
    with pytest.raises(config.Error) as caught:
        config.override(BASE, {key: Text(value)})
    assert '\n' not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize('key, text, value', [
    ('model.depth', '12', 12), ('model.depth', '1_000', 1000), ('model.depth', '1e3', 1000),
    ('model.dropout', '0', 0.0), ('model.dropout', '3e-4', 3e-4),
    ('model.tied', 'false', False), ('model.tied', 'Yes', True), ('model.tied', '0', False),
    ('model.norm', 'Layer', 'layer'), ('model.window', 'None', None), ('model.window', '128', 128),
    ('model.pattern', '1,2,3', (1, 2, 3)), ('model.pattern', '(4, 5)', (4, 5)), ('model.pattern', '7', (7,)),
    ('model.pattern', '()', ()), ('model.position', 'none', None), ('model.position', 'alibi', Alibi()),
    ('model.position', 'layers.Rope(theta=5)', Rope(5.0)), ('model', 'model(3, width=8)', Model(3, 8)),
    ('schedule', 'Schedule(7)', Schedule(7)), ('schedule', 'linear(stop=3)', Linear(stop=3)),
    ('sources', '(Cosine(end=0.5), linear(1, stop=2))', (Cosine(end=0.5), Linear(1, stop=2))),
    ('sources', 'Cosine(3)', (Cosine(3),)), ('mesh', '{"data": 8}', {'data': 8}),
    ('files', 'data/*.txt', 'data/*.txt'), ('files', '5', '5'), ('files', '("a", "b")', ('a', 'b')),
    ('seed', '7', 7), ('seed', '7.5', 7.5), ('seed', 'seven', 'seven'), ('seed', '"7"', '7'),
    ('anything', '[1, "a"]', [1, 'a']), ('anything', 'free text', 'free text'),
])
def test_text_is_read_as_the_annotation_says(key, text, value):
    changed = config.override(BASE, {key: Text(text)})
    for name in key.split('.'):
        changed = getattr(changed, name)
    assert changed == value and type(changed) is type(value)


@pytest.mark.parametrize('key, text, message', [
    ('model.dept', '1', "no field 'model.dept'; did you mean 'model.depth'?"),
    ('depth', '1', "no field 'depth'; did you mean 'model.depth'?"),
    ('modle.depth', '1', "no field 'modle'; did you mean 'model'?"),
    ('zzz', '1', "no field 'zzz'; the experiment has model, schedule, mesh, scale, files, sources, anything, seed."),
    ('model.depth', 'abc', 'model.depth=abc is not an int; try model.depth=6.'),
    ('model.depth', '1.5', 'model.depth=1.5 is not an int; try model.depth=6.'),
    ('model.depth', 'True', 'model.depth=True is not an int; try model.depth=6.'),
    ('model.depth.x', '1', "model.depth=6 has no field 'x' inside; set model.depth itself."),
    ('model.window', 'abc', 'model.window=abc is not an int or None; try model.window=1.'),
    ('model.norm', 'layr', 'model.norm=layr is not one of layer, layer_bias, rms; try model.norm=layer.'),
    ('model.position', 'rop', 'model.position=rop is not a component that fits here; did you mean '
     'model.position=Rope?'),
    ('model.position', 'Rope(tetha=1)', "no field 'tetha' in model.position=Rope(tetha=1); did you mean 'theta'?"),
    ('schedule', 'linear', 'schedule=linear() lacks stop; try schedule=Linear(stop=1).'),
    ('schedule', 'Cosine(end=x)', 'schedule.end=x is not a float; try schedule.end=0.1.'),
    ('model.pattern', 'a,2', 'model.pattern.0=a is not an int; try model.pattern.0=1.'),
    ('mesh.data', 'x', 'mesh.data=x is not an int; try mesh.data=-1.'),
    ('model.heads', '7', 'model: width=64 is not a multiple of heads=7; try model.width=256.'),
])
def test_refusals_name_the_fact_and_a_remedy(key, text, message):
    assert refusal(key, text) == message


@pytest.mark.parametrize('key, value', [('model.depth', 1.0), ('model.tied', 1), ('model.depth', None),
                                        ('model', Rope()), ('model.pattern', 3), ('schedule', 'f"{1}"')])
def test_python_values_are_checked_too(key, value):
    with pytest.raises(config.Error, match=key):
        config.override(BASE, {key: value})


@pytest.mark.parametrize('text', ['__import__("os").getcwd()', 'Rope(theta=1+1)', 'Rope(**{})', 'lambda: 1'])
def test_only_literals_are_read(text):
    refusal('model.position', text)


def test_overrides_apply_together_whatever_their_order():
    assert shell(model__heads='7', model__width='14').model.width == 14
    changed = shell(schedule__stop='9', schedule='linear(stop=1)')
    assert changed.schedule == Linear(stop=9)


def test_items_of_dicts_and_tuples_have_keys():
    assert shell(mesh__data='4').mesh == {'data': 4, 'fsdp': 1}
    assert config.override(BASE, {'scale.mlp.*': Text('2')}).scale == {'mlp.*': 2.0}
    assert config.override(BASE, {'scale.a.b': 1}).scale == {'mlp.*': 0.5, 'a.b': 1.0}
    assert shell(sources__1__end='0.9').sources == (Schedule(1), Cosine(2, end=0.9))
    assert BASE.mesh == {'data': -1, 'fsdp': 1}


def test_diff_shows_leaves_and_whole_components_of_another_type():
    assert config.diff(BASE, shell(model__depth='7')) == {'model.depth': (6, 7)}
    assert config.diff(BASE, shell(schedule='Schedule(100)')) == {'schedule': (Cosine(100), Schedule(100))}
    assert config.diff(BASE, shell(mesh__tensor='2')) == {'mesh.tensor': (config.ABSENT, 2)}


WORDS = st.text(max_size=8)
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)
INTS = st.integers(-2 ** 63 + 1, 2 ** 63 - 1)
SCHEDULES = st.one_of(st.builds(Schedule, INTS), st.builds(Cosine, INTS, end=NUMBERS),
                      st.builds(Linear, INTS, stop=INTS))
MODELS = st.builds(
    Model, depth=INTS, width=st.integers(1, 9).map(lambda n: n * 4), dropout=NUMBERS, tied=st.booleans(),
    norm=st.sampled_from(['rms', 'layer', 'layer_bias']), window=st.none() | INTS,
    position=st.one_of(st.none(), st.just(Alibi()), st.builds(Rope, NUMBERS)),
    pattern=st.lists(INTS).map(tuple))
PLAIN = st.recursive(st.none() | st.booleans() | INTS | NUMBERS | WORDS,
                     lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
                     | st.dictionaries(WORDS | INTS, inner, max_size=3))
EXPERIMENTS = st.builds(
    Experiment, model=MODELS, schedule=SCHEDULES, mesh=st.dictionaries(WORDS, INTS, max_size=3),
    scale=st.dictionaries(st.sampled_from(['mlp.*', 'embed', 'type']), NUMBERS), anything=PLAIN,
    files=WORDS | st.lists(WORDS).map(tuple), sources=st.lists(SCHEDULES, max_size=3).map(tuple),
    seed=INTS | NUMBERS | WORDS)


@settings(max_examples=100, deadline=None)
@given(EXPERIMENTS)
def test_build_inverts_dump(value):
    dumped = json.loads(json.dumps(config.dump(value)))
    assert repr(config.build(dumped, __file__)) == repr(value)
    assert config.fingerprint(config.build(dumped, __file__)) == config.fingerprint(value)


@settings(max_examples=100, deadline=None)
@given(EXPERIMENTS)
def test_overriding_with_its_own_leaves_changes_nothing(value):
    assert config.override(value, config.flatten(value)) == value


@settings(max_examples=100, deadline=None)
@given(MODELS, MODELS)
def test_diff_is_what_turns_one_into_the_other(a, b):
    changes = {key: right for key, (_, right) in config.diff(a, b).items()}
    assert config.override(a, changes) == b
    assert bool(changes) == (a != b)


@settings(max_examples=100, deadline=None)
@given(MODELS, st.sampled_from(['depth', 'dropout', 'tied', 'norm', 'window', 'pattern']))
def test_what_is_shown_can_be_typed_back(model, field):
    value = getattr(model, field)
    typed = config.override(Model(), {field: Text(shown(value))})
    assert typed == dataclasses.replace(Model(), **{field: value})


@settings(max_examples=100, deadline=None)
@given(WORDS, st.sampled_from(sorted(config.flatten(BASE))))
def test_any_text_is_taken_or_refused_in_one_line(text, key):
    try:
        config.override(BASE, {key: Text(text)})
    except config.Error as error:
        assert str(error).startswith((key, 'model: width')) and len(str(error).splitlines()) == 1


def test_fingerprint_depends_on_values_and_types_only():
    assert config.fingerprint(Rope(1)) == config.fingerprint(Rope(1.0)) != config.fingerprint(Rope(2.0))
    assert config.fingerprint(Schedule(1)) != config.fingerprint(Linear(1, stop=0))
    assert config.fingerprint({'a': 1, 'b': 2}) == config.fingerprint({'b': 2, 'a': 1})
    assert config.fingerprint((1,)) != config.fingerprint([1])
    assert len(config.fingerprint(None)) == 16


def test_dump_names_classes_and_functions():
    for value in (math.sqrt, dataclasses.Field, pathlib.Path('a/b'), math.inf, {1, 2}, {(1, 2): 3}):
        assert config.build(json.loads(json.dumps(config.dump(value))), __file__) == value
    with pytest.raises(config.Error, match='cannot be recorded'):
        config.dump(lambda: 1)


@pytest.mark.parametrize('dumped, message', [
    ({'type': 'no.such:Thing'}, 'does not exist here'),
    ({'type': 'math:sqrt'}, 'not a dataclass'),
    ({'type': f'{__name__}:Rope', 'tetha': 1}, "no field 'tetha'; its fields are theta"),
    ({'type': 'lm.data.corpus:Corpus'}, 'needs train, valid'),
])
def test_build_says_what_is_missing(dumped, message):
    with pytest.raises(config.Error, match=message):
        config.build(dumped, __file__)


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.1
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Part:
    depth: int = 2
    MOVED: ClassVar = {'layers': 'depth'}


@dataclasses.dataclass(frozen=True)
class Whole:
    part: Part = Part()
    inner: Inner = Inner()
    MOVED: ClassVar = {'size': 'inner.size', 'part.rate': 'inner.rate', 'piece': 'part'}


@pytest.mark.parametrize('old, new', [('size', 'inner.size'), ('part.rate', 'inner.rate'),
                                      ('part.layers', 'part.depth'), ('piece.layers', 'part.depth')])
def test_an_override_by_an_older_name_is_answered_by_the_new_one(old, new):
    with pytest.raises(config.Error, match=f"^no field '{old}'; it is {new} now.$"):
        config.override(Whole(), {old: 1})
