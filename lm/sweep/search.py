"""A sweep whose trials are drawn one after another: search.json says from what, and which points were asked for."""
import json
import math
import statistics
from pathlib import Path

from lm import config, records
from lm.config import files
from lm.config.values import Text, fit
from lm.sweep import combinators, samplers, trials

RECORD = 'search.json'
DRAWS, OWN = 100, 10  # in which a point that fits, and is new, must be found; the first are the sampler's own


def begin(sweep, text, over, seeds):
    """Records that a sweep draws points by the sampler that a text names, or changes which, and how many.

    Raises config.Error where the sweep draws from other ranges already.
    """
    sampler, space = fit(Text(text), samplers.Sampler, '--sample'), samplers.space_of(over)
    sampler.check()
    keys = [text.partition('=')[0] for text in over] + [*records.SEEDS] * bool(seeds)
    if twice := [key for key in keys if keys.count(key) > 1]:
        too = ', by --seeds too' if twice[0] in records.SEEDS and seeds else ''
        raise config.Error(f'{twice[0]} is set twice{too}; give one range or list of it.')
    if not space:
        raise config.Error(f'--sample={text} has nothing to draw; add ranges, e.g. --over optimizer.peak=1e-4..1e-2.')
    config.override(sweep.base, {key: kind.low if isinstance(kind, samplers.Range) else Text(kind[0])
                                 for key, kind in space.items()})
    about = {'sampler': config.dump(sampler), 'over': list(over), 'seeds': seeds, 'asked': [], 'ended': False}
    with trials.alone(sweep.directory):
        begun = read(sweep.directory)
        if begun and begun['asked'] and (begun['over'], begun['seeds']) != (about['over'], seeds):
            words = ' '.join(f'--over {each}' for each in begun['over'])
            raise config.Error(f'{sweep.directory} draws from other ranges: {words} --seeds={begun["seeds"]}; '
                               'give these, or another --workdir.')
        _write(sweep.directory, about | ({'asked': begun['asked']} if begun else {}))


def refuse_ranges(over):
    """Raises config.Error where a text of --over is a range, from which only a sampler can draw."""
    for text in over:
        if samplers.range_of(text.partition('=')[2]):
            raise config.Error(f"--over {text} is a range; add --sample='Random(trials=20)' or "
                               "--sample='Optuna(trials=20)' to draw from it, or list values.")


def read(directory):
    """Returns what search.json of a sweep's directory says, None where nothing is drawn."""
    path = Path(directory) / RECORD
    return json.loads(path.read_text()) if path.exists() else None


def _write(directory, about):
    files.replace(Path(directory) / RECORD, json.dumps(about, indent=1) + '\n')


def ended(sweep):
    """Returns whether no more points will be asked for."""
    about = read(sweep.directory)
    return about is None or about['ended'] or len(about['asked']) >= about['sampler']['trials']


def ask(sweep, count=1):
    """Returns whether up to `count` points more were drawn, whose trials, one a seed, the sweep then lists."""
    if ended(sweep):
        return False
    with trials.alone(sweep.directory):
        about, drawn = read(sweep.directory), False
        sampler = config.build(about['sampler'], sweep.directory / 'experiment.py')
        for _ in range(min(count, sampler.trials - len(about['asked']))):
            sweep = trials.open_sweep(sweep.directory)
            point, found = _new(sweep, sampler, about)
            if found is None:
                about['ended'] = True
                print(f'{DRAWS} draws gave no new point: {len(about["asked"])} of {sampler.trials} are all there are.')
                break
            trials.add(sweep.directory, found)
            about['asked'].append({'point': point, 'trials': [trial.id for trial in found]})
            drawn = True
        _write(sweep.directory, about)
    return drawn


def _new(sweep, sampler, about):
    """Returns (point, its trials) that the sweep does not list yet, (None, None) where none is found."""
    space, told = samplers.space_of(about['over']), _told(sweep, about)
    seeds = [{}] if not about['seeds'] else combinators.zipped(dict.fromkeys(records.SEEDS, range(about['seeds'])))
    known, fault = {trial.id for trial in sweep.trials}, None
    chance = samplers.Random(sampler.trials, sampler.seed)  # goes on where what is best is asked for again and again
    for attempt in range(DRAWS):
        drawn = sampler if attempt < OWN else chance
        point = drawn.draw(space, told, f'{len(told)}.{attempt}')
        changes = {key: Text(value) if isinstance(value, str) else value for key, value in point.items()}
        try:
            found = trials.listed(sweep.directory, sweep.base, [changes | seed for seed in seeds])
        except config.Error as error:
            fault = error
            continue
        if not {trial.id for trial in found} & known:
            return point, found
    if fault and not about['asked']:
        raise fault
    return None, None


def _told(sweep, about):
    """Returns the [Told] of all points asked for, by the files of their trials."""
    found, progress = trials.states(sweep)
    return [_said(each['point'], [found[name] for name in each['trials']],
                  [progress[name][1] for name in each['trials']]) for each in about['asked']]


def _said(point, states, scores):
    if 'failed' in states:
        return samplers.Told(point, math.inf)
    if 'stopped' in states and {*states} <= {*trials.SETTLED}:
        last = min(max(each) for each in scores)
        return samplers.Told(point, statistics.fmean(_finite(each[last]) for each in scores if last in each), last)
    if {*states} == {'finished'}:
        return samplers.Told(point, statistics.fmean(each[max(each)] for each in scores))
    return samplers.Told(point, None)


def _finite(loss):
    return math.inf if loss is None else loss
