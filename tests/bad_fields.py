"""Bad values of every field: of all shipped experiments and of every component that can be chosen by name."""
import collections.abc
import dataclasses
import functools
import json
import math
import pathlib
import types
import typing

import damage
from bad_inputs import Kind, Silent

from lm import config
from lm.config.annotations import candidates, default, example, hints, is_component
from lm.config.overrides import branches, children
from lm.config.values import Text, fit
from lm.sweep import rules, samplers

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOTS = (rules.Rule, samplers.Sampler)  # chosen by name in flags, not in experiments
NUMBERS = ('-5', '0', '-0', '1', '7', '1e30', '-1e30', f'1{"0" * 400}', '1e400', '-1e400', '1e-400', '1e-45', 'nan',
           'NaN', 'inf', '-inf', 'infinity', '5' * 5000, f'-{"9" * 5000}', f'0.{"3" * 5000}', '2147483648',
           '-2147483649', '9223372036854775808', '99999999999999999999', '0.5', '-0.5', '1_000', '0x10', '1j', '١',
           '²', '½', '1.0.0')
TEXTS = ('', ' ', 'x', 'None', 'none', 'true', 'False', 'yes', 'auto', '.', '..', '../..', '/dev/null', '/proc/self/x',
         '~', '~no-such-user/x', '-', '--x', '=', 'a=b', 'a\nb', '\n', '\r\n', 'a\tb', '\0', 'a\0b', '\ud800', 'é',
         'ｘ', '\u202ex', '🜁' * 3, 'x' * 5000, '%s %d', '{}', '{0}', '[red]x[/red]', '$HOME', '`id`', "';--", '"', "'",
         "'x'", '"x', "b'x'", '\\', '#', '*', '(*', '**')
BRACKETS = ('[' * 300, '(' * 5000, f'{"[" * 99}{"]" * 99}', f'{"f(" * 120}{")" * 120}', '()', '[]', '[[]]', '(,)',
            '1,', ',', '1,,2', '1,2,3', '(1, 2', '{1}', '{[]}', '{[]: 1}', '{{}: 1}', '{{1}}', '{1: 2}', "{'a': 1}",
            "{'a': nan}", "{'': ''}", "{'a.b': 1, 'a': 2}", "{'type': 'a:b'}", '{**{}}', '...', 'Ellipsis', 'f(',
            'f()', 'f(1)(2)', 'a.b', 'a.b(c=1)', 'a.b.c', 'lambda: 0', '2**31', '10**10**10', '1 if 1 else 2',
            '[x for x in ()]', '__import__("os")', 'f"{1}"', '-x', '--1', '-(1)', 'not 1', '1 < 2', 'x[0]', '*x',
            'print(1)', 'f(**{})', 'f(*[1])', 'f(x=1, x=2)', 'f(1, y=2)')
SIGNED = {'seed', 'mask', 'first', 'separator'}  # plain ints that may be negative: ids count from the end too


def bad_word(rng, present=''):
    """Returns a text that is bad for most fields; `present` is one that is good there, and is damaged in some cases."""
    known = [cls.__name__ for cls in components()]
    match rng.randrange(12):
        case 0 | 1 | 2 | 3:
            return rng.choice(NUMBERS)
        case 4 | 5:
            return rng.choice(TEXTS)
        case 6 | 7:
            return rng.choice(BRACKETS)
        case 8:
            return rng.choice(known)
        case 9:
            cls = rng.choice(list(components()))
            names = [field.name for field in dataclasses.fields(cls) if field.init] + ['x']
            return f'{cls.__name__}({rng.choice(names)}={rng.choice(NUMBERS + TEXTS + BRACKETS + (*known,))})'
        case 10:
            return rng.choice((*known, *NUMBERS)) + rng.choice(('(', '()', '(())', ',', '.', ' ', '\n', '\0', '=', ';'))
    place, typo = rng.randrange(len(present) + 1), rng.choice(('', '\0', '-', 'e999', '(', "'", '²', ',', '9' * 400))
    return present[:place] + typo + present[place + rng.randrange(2):]


def misfit(value, hint, name):
    """Returns in words where a value is not what an annotation promises: a number that is not finite or out of its
    interval, another type, a negative int that nobody has allowed; '' where it is. It shares no code with the checks.
    """
    hint = getattr(hint, '__value__', None) or getattr(hint, '__supertype__', None) or hint
    kind = typing.get_origin(hint) or hint
    if hint in (typing.Any, object) or isinstance(hint, typing.TypeVar):
        return '' if not isinstance(value, float) or math.isfinite(value) else f'{name} is {value}'
    if kind is typing.Annotated:
        base, *intervals = typing.get_args(hint)
        fault = misfit(value, base, 'seed')  # the interval says whether it may be negative
        return fault or next((f'{name}={value} is not {end}' for end in intervals if not _inside(value, end)), '')
    if kind in (typing.Union, types.UnionType):
        faults = [misfit(value, member, name) for member in typing.get_args(hint)]
        return faults[0] if all(faults) else ''
    if kind is typing.Literal:
        fits = any(value == choice and type(value) is type(choice) for choice in typing.get_args(hint))
    elif kind is float:
        fits = type(value) in (int, float) and math.isfinite(value)
    elif kind is int:
        fits = type(value) is int and abs(value) < 2 ** 63 and (value >= 0 or name in SIGNED)
    elif kind in (tuple, list, set, frozenset, collections.abc.Sequence):
        return _item_misfit(value, hint, name)
    elif kind in (dict, collections.abc.Mapping):
        names, items = typing.get_args(hint) or (typing.Any, typing.Any)
        fits = isinstance(value, kind) and not any(misfit(key, names, name) or misfit(item, items, 'seed')
                                                   for key, item in value.items())
    elif kind is collections.abc.Callable or getattr(kind, '_is_protocol', False):
        fits = callable(value) or is_component(value)
    else:
        fits = value is None if kind in (None, type(None)) else isinstance(value, kind)
    return '' if fits else f'{name}={value!r:.80} is not {hint}'


def _inside(value, interval):
    above = value > interval.low or (value == interval.low and interval.ends[0] == '[')
    return above and (value < interval.high or (value == interval.high and interval.ends[1] == ']'))


def _item_misfit(value, hint, name):
    kind, inner = typing.get_origin(hint) or hint, typing.get_args(hint)
    if not isinstance(value, kind):
        return f'{name}={value!r:.80} is not {hint}'
    if kind is tuple and inner and inner[-1] is not ...:
        pairs = list(zip(value, inner)) if len(value) == len(inner) else [(value, type(None))]
    else:
        pairs = [(item, inner[0] if inner else typing.Any) for item in value]
    return next(filter(None, (misfit(item, of, name) for item, of in pairs)), '')


def unsound(value, key=''):
    """Returns where a component, or one inside it, holds what its annotations do not promise; '' where all is well."""
    for name, child in children(value).items():
        known = hints(type(value)).get(name, typing.Any) if is_component(value) else typing.Any
        if fault := misfit(child, known, name) or unsound(child, name):
            return fault
    return ''


@functools.cache
def experiments():
    """Returns {file: Experiment} of all that are shipped."""
    return {file: config.load(file) for file in sorted((ROOT / 'experiments').rglob('*.py'))}


@functools.cache
def components():
    """Returns {class: an instance} of every component of lm that an experiment has, or that can take its place."""
    known = {}
    queue = [*ROOTS, *(type(experiment.config) for experiment in experiments().values())]
    present = {type(value): value for experiment in experiments().values() for _, value in branches(experiment.config)}
    while queue:
        for cls in candidates((queue.pop(),), None):
            if cls not in known and cls.__module__.startswith('lm.'):
                known[cls] = present.get(cls) or sample(cls)
                queue += [part for hint in hints(cls).values() for part in _classes(hint)]
    return dict(sorted(known.items(), key=lambda item: item[0].__name__))


def _classes(hint):
    """Yields the classes of lm that an annotation names."""
    if isinstance(hint, type) and hint.__module__.startswith('lm.'):
        yield hint
    for inner in typing.get_args(hint):
        yield from _classes(inner)


def sample(cls):
    """Returns an instance of a component with an example in place of what has no default; None where there is none."""
    fields = [field for field in dataclasses.fields(cls) if field.init]
    lacking = [field.name for field in fields if default(field) is None
               and field.default is field.default_factory is dataclasses.MISSING]
    try:
        return cls(**{name: fit(Text(str(example(hints(cls)[name], None))), hints(cls)[name], name)
                      for name in lacking})
    except (config.Error, TypeError, ValueError):
        return None


def kinds(folder, patch):
    """Returns the [Kind] of fields: typed as overrides, and restored from records."""
    keys, owners = {}, components()
    for file, experiment in experiments().items():
        for key, _ in branches(experiment.config):
            keys.setdefault(key, []).append(file)
    fields = {f'{cls.__name__}.{field.name}': cls for cls, instance in owners.items() if instance is not None
              for field in dataclasses.fields(cls) if field.init}

    def typed(place, rng):
        if place in keys:
            file = rng.choice(keys[place])
            base, present = experiments()[file].config, dict(branches(experiments()[file].config))[place]
            word = bad_word(rng, config.spelled(present))
            return f'{file.name} {place}={word}', lambda: judge(config.override(base, {place: Text(word)}), file)
        cls, name = fields[place], place.rpartition('.')[2]
        word = bad_word(rng, config.spelled(getattr(owners[cls], name)))
        if rng.randrange(2):
            return f'{name}={word}', lambda: judge(config.override(owners[cls], {name: Text(word)}))
        return f'{cls.__name__}({name}={word})', lambda: judge(fit(Text(f'{cls.__name__}({name}={word})'), cls, 'x'))

    def restored(place, rng):
        part = experiments()[place].config if place in experiments() else owners[place]
        [(change, record)] = damage.garbled(json.loads(json.dumps(config.dump(part))), rng, 1)
        return change, lambda: judge(config.build(record, place if place in experiments() else None))
    records = [*experiments(), *(cls for cls, instance in owners.items() if instance is not None)]
    return [Kind('typed fields', 35, [*keys, *fields], typed), Kind('restored fields', 20, records, restored)]


def judge(settings, file=None):
    """Raises Silent where settings that were accepted should not have been."""
    if not is_component(settings):
        return  # of a record whose whole was replaced, which is no record of settings any more
    if fault := unsound(settings):
        raise Silent(fault)
    if config.diff(config.build(json.loads(json.dumps(config.dump(settings))), file), settings):
        raise Silent('its record is of other settings')
