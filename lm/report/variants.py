"""Trials grouped into variants: those that differ only in seeds and, where it is swept, in the learning rate."""
import collections
import json
import math
from dataclasses import dataclass, replace

from lm.config import ABSENT, Error
from lm.config.annotations import close

BASELINE = 'baseline'


@dataclass(frozen=True)
class Variant:
    """The trials of one variant. rate_key: key of the learning rate if several were tried for each variant, else ''."""

    name: str
    settings: dict
    trials: tuple
    rate_key: str = ''

    @property
    def rates(self):
        """{rate: [Trial]}, ascending; {None: all trials} if no rate is swept."""
        if not self.rate_key:
            return {None: list(self.trials)}
        groups = {}
        for trial in self.trials:
            groups.setdefault(trial.settings.get(self.rate_key), []).append(trial)
        return {rate: groups[rate] for rate in sorted(groups)}

    @property
    def finished(self):
        return [trial for trial in self.trials if trial.state == 'finished']


def gather(trials, rate_key, baseline='', first=None):
    """Returns the [Variant] of trials, the baseline first: the one of that name, else that of the trial `first`.

    Several values of `rate_key` within a variant are its learning rates; where nothing else differs they are variants.
    Where runs have the same settings and seeds, their directories count as settings, so that versions of the code can
    be compared. Raises config.Error for two such runs in one directory, for an unknown baseline, and for a swept
    rate that is no number.
    """
    if _repeated(trials):
        trials = [replace(trial, settings={**trial.settings, 'directory': str(trial.root)}) for trial in trials]
        _check_distinct(trials)
    rate_key = rate_key if _swept(trials, rate_key) else ''
    groups = {}
    for trial in sorted(trials, key=lambda trial: trial.name != first):
        groups.setdefault(_identity(trial, rate_key), []).append(trial)
    for group in groups.values():
        _check_rates(group, rate_key)
    variants = named([Variant('', without(group[0].settings, rate_key), tuple(group), rate_key)
                      for group in groups.values()])
    if not baseline:
        return variants
    chosen = find(variants, baseline)
    return named([chosen, *(variant for variant in variants if variant is not chosen)])


def lengths(groups, rate_key):
    """Returns the [Variant] that are the baseline, the first, trained for other numbers of steps."""
    base, *others = groups
    changes = [(other, changed(base.settings, other.settings).keys()) for other in others]
    return [other for other, keys in changes if {'steps'} <= keys <= {'steps', rate_key}]


def _swept(trials, rate_key):
    """Returns whether several learning rates were tried for some variant of several."""
    rates = {}
    for trial in trials:
        rates.setdefault(_identity(trial, rate_key), set()).add(trial.settings.get(rate_key))
    return len(rates) > 1 and max(map(len, rates.values())) > 1


def _check_rates(trials, rate_key):
    """Raises config.Error where the trials of a variant differ in a rate that is no number, or is below 0."""
    rates = {repr(trial.settings.get(rate_key)): trial for trial in trials}
    for trial in rates.values() if len(rates) > 1 else ():
        rate = trial.settings.get(rate_key)
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < math.inf:
            raise Error(f'{trial.directory} has {rate_key}={rate}, which is no learning rate; leave it out, or give '
                        'the key of the learning rate as --rate.')


def _repeated(trials):
    """Returns the {(settings, seed)} of which there are several trials."""
    counts = collections.Counter((_identity(trial, ''), trial.seed) for trial in trials)
    return {identity for identity, count in counts.items() if count > 1}


def _check_distinct(trials):
    places = {}
    for trial in trials:
        first = places.setdefault((_identity(trial, ''), trial.seed), trial.directory)
        if first != trial.directory:
            raise Error(f'{first} and {trial.directory} have the same settings and seeds; leave one of them out.')


def without(settings, key):
    """Returns settings without one key."""
    return {name: value for name, value in settings.items() if name != key}


def _identity(trial, rate_key):
    return json.dumps(without(trial.settings, rate_key), sort_keys=True)


def find(variants, word):
    """Returns the Variant of a name, part of a name, run or directory; raises config.Error unless it is exactly one."""
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
    return {place for trial in variant.trials for place in (trial.name, str(trial.root), trial.root.name)}


def changed(a, b):
    """Returns {dotted key: (value in a, value in b)} of settings that differ."""
    pairs = {key: (a.get(key, ABSENT), b.get(key, ABSENT)) for key in a | b}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def difference(a, b):
    """Returns `changed` without the fields of a component whose type differs."""
    pairs = changed(a, b)
    return {key: pair for key, pair in pairs.items() if not _parents(key) & pairs.keys()}


def own(variants):
    """Returns {dotted key: value} of the settings in which the first variant differs from all others."""
    base, *others = variants
    keys = [difference(base.settings, other.settings).keys() for other in others]
    return {key: base.settings.get(key, ABSENT) for key in sorted(set.intersection(*map(set, keys)))} if keys else {}


def _parents(key):
    parts = key.split('.')
    return {'.'.join(parts[:i]) for i in range(1, len(parts))}


def named(variants):
    """Returns variants named by what differs from the first, the baseline: 'position=Alibi, depth=4'."""
    base, *others = variants
    changes = [{key: now for key, (_, now) in difference(base.settings, other.settings).items()} for other in others]
    changes = [_distinguished(change, other, changes, others) for change, other in zip(changes, others, strict=True)]
    short = _shortened({key for change in changes for key in change})
    names = [', '.join(f'{short[key]}={value}' for key, value in change.items()) for change in changes]
    return [replace(variant, name=name) for variant, name in zip(variants, [BASELINE, *names], strict=True)]


def _distinguished(change, variant, changes, variants):
    """Returns a variant's changes with those that distinguish it from variants of the same name so far.

    Such variants have the same new component with other fields, which `difference` leaves out.
    """
    twins = [other for other, its in zip(variants, changes, strict=True) if its == change and other is not variant]
    keys = {key for twin in twins for key in difference(variant.settings, twin.settings)}
    return change | {key: variant.settings.get(key, ABSENT) for key in sorted(keys)}


def _shortened(keys):
    last = [key.rpartition('.')[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
