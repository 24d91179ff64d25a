"""Trials gathered into variants: what remains of their settings when seeds, and a swept learning rate, are left out."""
import collections
import json
from dataclasses import dataclass, replace

from lm.config import ABSENT, Error
from lm.config.annotations import close

BASELINE = 'baseline'


@dataclass(frozen=True)
class Variant:
    """The trials of one variant. rate_key: the setting whose values are rates tried for it, '' where it is its own."""

    name: str
    settings: dict
    trials: tuple
    rate_key: str = ''

    @property
    def rates(self):
        """{rate: [Trial]}, ascending; {None: all} where no rate is swept."""
        if not self.rate_key:
            return {None: list(self.trials)}
        found = {}
        for trial in self.trials:
            found.setdefault(trial.settings.get(self.rate_key), []).append(trial)
        return {rate: found[rate] for rate in sorted(found)}

    @property
    def finished(self):
        return [trial for trial in self.trials if trial.state == 'finished']


def gather(trials, rate_key, baseline='', first=None):
    """Returns the [Variant] of trials, the baseline first: the one named, or that of the trial `first`, or the first.

    Several values of `rate_key` tried for a variant are its rates; where nothing else differs they are the variants.
    Runs given twice with the same settings and seeds are variants by their directories, so that code can be compared.
    Raises config.Error for two that no directory tells apart, and for an unknown baseline.
    """
    if _repeated(trials):
        trials = [replace(trial, settings={**trial.settings, 'directory': str(trial.given)}) for trial in trials]
        _check_distinct(trials)
    rate_key = rate_key if _swept(trials, rate_key) else ''
    groups = {}
    for trial in sorted(trials, key=lambda trial: trial.name != first):
        groups.setdefault(_identity(trial, rate_key), []).append(trial)
    found = named([Variant('', without(group[0].settings, rate_key), tuple(group), rate_key)
                   for group in groups.values()])
    if not baseline:
        return found
    chosen = find(found, baseline)
    return named([chosen, *(variant for variant in found if variant is not chosen)])


def _swept(trials, rate_key):
    rates = {}
    for trial in trials:
        rates.setdefault(_identity(trial, rate_key), set()).add(trial.settings.get(rate_key))
    return len(rates) > 1 and max(map(len, rates.values())) > 1


def _repeated(trials):
    counted = collections.Counter((_identity(trial, ''), trial.seed) for trial in trials)
    return {mark for mark, count in counted.items() if count > 1}


def _check_distinct(trials):
    repeated = _repeated(trials)
    same = [str(trial.directory) for trial in trials if (_identity(trial, ''), trial.seed) in repeated]
    if same:
        raise Error(f'{same[0]} and {same[1]} have the same settings and seeds; leave one of them out.')


def without(settings, key):
    """Returns settings without one key."""
    return {name: value for name, value in settings.items() if name != key}


def _identity(trial, rate_key):
    return json.dumps(without(trial.settings, rate_key), sort_keys=True)


def find(variants, word):
    """Returns the Variant of a name, of a part of one, or of a run or directory of runs; raises config.Error."""
    tests = (lambda v: v.name == word, lambda v: word in _places(v), lambda v: word.lower() in v.name.lower())
    for test in tests:
        matching = [variant for variant in variants if test(variant)]
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise Error(f'{word!r} may be {" or ".join(repr(v.name) for v in matching)}; give the whole name.')
    names = [variant.name for variant in variants]
    words = {part: name for name in names for part in (*name.replace(', ', '=').split('='), name)}
    near = close(word, words)
    remedy = f'did you mean {words[near[0]]!r}?' if near else f'there are {", ".join(names)}.'
    raise Error(f'no variant {word!r}; {remedy}')


def _places(variant):
    return {place for trial in variant.trials for place in (trial.name, str(trial.given), trial.given.name)}


def changed(a, b):
    """Returns {dotted key: (value in a, value in b)} of settings that differ."""
    pairs = {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in a | b}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def difference(a, b):
    """Returns {dotted key: (value in a, value in b)} of settings, of a component of another type only the type."""
    pairs = changed(a, b)
    return {key: pair for key, pair in pairs.items() if not _above(key) & pairs.keys()}


def own(variants):
    """Returns {dotted key: value} of the first variant's settings that are otherwise in all others."""
    base, *others = variants
    keys = [difference(base.settings, other.settings).keys() for other in others]
    return {key: base.settings.get(key, ABSENT) for key in sorted(set.intersection(*map(set, keys)))} if keys else {}


def _above(key):
    parts = key.split('.')
    return {'.'.join(parts[:i]) for i in range(1, len(parts))}


def named(variants):
    """Returns variants with names that say what differs from the first, which is called the baseline."""
    base, *others = variants
    changes = [{key: now for key, (_, now) in difference(base.settings, other.settings).items()} for other in others]
    changes = [_distinguished(change, other, changes, others) for change, other in zip(changes, others, strict=True)]
    short = _shortened({key for change in changes for key in change})
    names = [', '.join(f'{short[key]}={value}' for key, value in change.items()) for change in changes]
    return [replace(variant, name=name) for variant, name in zip(variants, [BASELINE, *names], strict=True)]


def _distinguished(change, variant, changes, variants):
    """Adds to a variant's change what tells it from variants with the same one: fields of the same new component."""
    twins = [other for other, its in zip(variants, changes, strict=True) if its == change and other is not variant]
    keys = {key for twin in twins for key in difference(variant.settings, twin.settings)}
    return change | {key: variant.settings.get(key, ABSENT) for key in sorted(keys)}


def _shortened(keys):
    last = [key.rpartition('.')[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
