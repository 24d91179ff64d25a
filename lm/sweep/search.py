"""Hyper-parameter search: a sweep whose trials a sampler draws one after another; search.json has space and points."""
import json
import math
import statistics
from pathlib import Path

from lm import config, records
from lm.config import files
from lm.config.values import Text, fit
from lm.sweep import combinators, samplers, trials

RECORD = 'search.json'
REMEDY = 'repair it, or begin another sweep.'
ABOUT = {'sampler': {'type': str, 'trials': int}, 'over': [str], 'seeds': int, 'ended': bool,
         'asked': [{'point': {str: float | int | str}, 'trials': [str]}]}
DRAWS, OWN = 100, 10  # tries to draw a valid new point; the first OWN by the sampler, the others at random


def begin(sweep, text, over, seeds):
    """Records the sampler and the space of a sweep's search; a search under way may change its sampler.

    text: the sampler, e.g. 'Random(trials=40)'. Raises config.Error if the sweep searches another space already.
    """
    sampler, space = fit(Text(text), samplers.Sampler, '--sample'), samplers.space_of(over)
    sampler.check()
    keys = [text.partition('=')[0] for text in over] + [*records.SEEDS] * bool(seeds)
    if repeated := [key for key in keys if keys.count(key) > 1]:
        too = ', by --seeds too' if repeated[0] in records.SEEDS and seeds else ''
        raise config.Error(f'{repeated[0]} is set twice{too}; give one range or list of it.')
    if not space:
        raise config.Error(f'--sample={text} has nothing to draw; add ranges, e.g. --over optimizer.peak=1e-4..1e-2.')
    config.override(sweep.base, {key: kind.low if isinstance(kind, samplers.Range) else Text(kind[0])
                                 for key, kind in space.items()})
    about = {'sampler': config.dump(sampler), 'over': list(over), 'seeds': seeds, 'asked': [], 'ended': False}
    with trials.alone(sweep.directory):
        begun = read(sweep.directory)
        if begun and begun['asked'] and (begun['over'], begun['seeds']) != (about['over'], seeds):
            words = ' '.join(f'--over {text}' for text in begun['over'])
            raise config.Error(f'{sweep.directory} draws from other ranges: {words} --seeds={begun["seeds"]}; '
                               'give these, or another --workdir.')
        _write(sweep.directory, about | ({'asked': begun['asked']} if begun else {}))


def refuse_ranges(over):
    """Raises config.Error for a range in --over: only a sampler can draw from it."""
    for text in over:
        if samplers.range_of(text.partition('=')[2]):
            raise config.Error(f"--over {text} is a range; add --sample='Random(trials=20)' or "
                               "--sample='Optuna(trials=20)' to draw from it, or list values.")


def read(directory):
    """Returns the search.json of a sweep's directory, None without a search."""
    return files.read_json(Path(directory) / RECORD, ABOUT, REMEDY, optional=True)


def _write(directory, about):
    files.replace(Path(directory) / RECORD, files.sealed(json.dumps(about, indent=1)) + '\n')


def ended(sweep):
    """Returns whether no more points will be drawn."""
    about = read(sweep.directory)
    return about is None or about['ended'] or len(about['asked']) >= about['sampler']['trials']


def ask(sweep, count=1):
    """Draws up to `count` more points and lists their trials, one per seed; returns whether any was drawn."""
    if ended(sweep):
        return False
    with trials.alone(sweep.directory):
        about, drawn = read(sweep.directory), False
        sampler = _sampler(sweep, about)
        for _ in range(min(count, sampler.trials - len(about['asked']))):
            sweep = trials.open_sweep(sweep.directory, sweep.code)
            point, listed = _new_point(sweep, sampler, about)
            if point is None:
                about['ended'] = True
                print(f'{DRAWS} draws gave no new point: the space seems to have {len(about["asked"])} points, fewer '
                      f'than trials={sampler.trials}.')
                break
            trials.add(sweep.directory, listed)
            about['asked'].append({'point': point, 'trials': [trial.id for trial in listed]})
            drawn = True
        _write(sweep.directory, about)
    return drawn


def _sampler(sweep, about):
    """Returns the Sampler of a search.json; raises config.Error where its points are none of its space."""
    directory, space = sweep.directory, samplers.space_of(about['over'])
    try:
        sampler = config.build(about['sampler'], sweep.code)
    except Exception as error:  # of a damaged record, and of an experiment file that defines the type
        raise config.Error(f'{directory / RECORD} is damaged ({config.first_line(error)}); {REMEDY}') from error
    within = lambda kind, value: (value in kind if isinstance(kind, tuple) and not isinstance(kind, samplers.Range) else
                                  not isinstance(value, str) and kind.low <= value <= kind.high)
    strange = [row['point'] for row in about['asked'] if row['point'].keys() != space.keys()
               or not all(within(space[key], value) for key, value in row['point'].items())]
    if strange or not isinstance(sampler, samplers.Sampler):
        why = f'{str(strange[0])[:200]} is no point of it' if strange else f'its sampler is a {type(sampler).__name__}'
        raise config.Error(f'{directory / RECORD} is damaged ({why}); {REMEDY}')
    return sampler


def _new_point(sweep, sampler, about):
    """Returns (point, its trials) that the sweep does not list yet, (None, None) if DRAWS draws give none."""
    space, observations = samplers.space_of(about['over']), _observations(sweep, about)
    seeds = [{}] if not about['seeds'] else combinators.zipped(dict.fromkeys(records.SEEDS, range(about['seeds'])))
    known, fault = {trial.id for trial in sweep.trials}, None
    fallback = samplers.Random(sampler.trials, sampler.seed)  # for a sampler that suggests the same point repeatedly
    for attempt in range(DRAWS):
        source = sampler if attempt < OWN else fallback
        point = source.draw(space, observations, f'{len(observations)}.{attempt}')
        changes = {key: Text(value) if isinstance(value, str) else value for key, value in point.items()}
        try:
            listed = trials.listed(sweep.directory, sweep.base, [changes | seed for seed in seeds])
        except config.Error as error:
            fault = error
            continue
        if not {trial.id for trial in listed} & known:
            return point, listed
    if fault and not about['asked']:
        raise fault
    return None, None


def _observations(sweep, about):
    """Returns the [Observation] of all points drawn, by the files of their trials."""
    states, progress = trials.states(sweep)
    unlisted = [name for row in about['asked'] for name in row['trials'] if name not in states]
    if unlisted:
        raise config.Error(f'{sweep.directory / RECORD} names a trial {unlisted[0][:100]!r} that the sweep does not '
                           f'list; {REMEDY}')
    return [_observation(row['point'], [states[name] for name in row['trials']],
                         [progress[name][1] for name in row['trials']]) for row in about['asked']]


def _observation(point, states, curves):
    """Returns the Observation of a point whose trials, one per seed, have these states and curves {step: loss}."""
    if 'failed' in states:
        return samplers.Observation(point, math.inf)
    if 'stopped' in states and {*states} <= {*trials.SETTLED}:
        last = min(map(max, curves))  # the last step that all seeds have come to
        losses = [math.inf if curve[last] is None else curve[last] for curve in curves if last in curve]
        return samplers.Observation(point, statistics.fmean(losses), last)
    if {*states} == {'finished'}:
        return samplers.Observation(point, statistics.fmean(curve[max(curve)] for curve in curves))
    return samplers.Observation(point, None)
