"""Two runs that should be equal: how each was made, and up to which step their records agree."""
from pathlib import Path

from lm import config, records
from lm.config import files
from lm.debug import replay
from lm.train import runs

MADE = ('commit', 'device', 'devices')
ABOUT = {'commit': str, 'device': str, 'devices': int, 'versions': {str: str}}


class Side:
    """One of the two runs: its name, directory, settings, record, and what config.json says it was made by."""

    def __init__(self, name, directory, trust=False):
        self.name, self.directory = name, Path(directory)
        self.about = files.read_json(self.directory / 'config.json', ABOUT, 'give the --workdir of an `lm train`.')
        self.settings = runs.read(directory, runs.trusted(directory, trust))
        self.records = losses(directory)
        if not self.records:
            raise config.Error(f'{directory} has no record of a loss yet; wait until the run has logged a step.')


def losses(directory):
    """Returns {step: {name: number}} of the metrics of a run that are deterministic."""
    return {record['step']: replay.stable(record) for record in records.intact(directory) if 'loss' in record}


def provenance(a, b):
    """Returns the lines that compare settings, versions, commit and devices of two runs."""
    lines = [f'A = {a.directory}, B = {b.directory}']
    changed = config.diff(a.settings, b.settings)
    for kind, keys in (('settings', [key for key in changed if not records.free(key)]),
                       ('settings that should change no result but rounding', list(filter(records.free, changed)))):
        if keys:
            lines.append(f'{kind}: ' + ', '.join(f'{key} ({changed[key][0]} in A, {changed[key][1]} in B)'
                                                 for key in keys))
    pairs = {name: (a.about[name], b.about[name]) for name in MADE}
    ours, theirs = a.about['versions'], b.about['versions']
    pairs |= {name: (ours.get(name, 'absent'), theirs.get(name, 'absent')) for name in {**ours, **theirs}}
    differing = [f'{name} ({was} in A, {now} in B)' for name, (was, now) in pairs.items() if was != now]
    lines.append(f'made by: {", ".join(differing)}' if differing else
                 f'made by: the same versions and commit, on {a.about["devices"]} x {a.about["device"]}')
    edited = [side.name for side in (a, b) if side.about['commit'].endswith('+')]
    if edited:
        lines.append(f'files differed from the commit in {" and ".join(edited)}: the code need not be the same.')
    return lines


def divergence(a, b):
    """Returns (the last step up to which two records agree, the first at which they do not or None)."""
    last = 0
    for step in sorted(a.keys() & b.keys()):
        if a[step] != b[step]:
            return last, step
        last = step
    return last, None


def compare_records(sides, last, first):
    """Returns the lines that say up to which step two records agree."""
    a, b = (side.records for side in sides)
    common = sorted(a.keys() & b.keys())
    if not common:
        raise config.Error(f'{sides[0].directory} and {sides[1].directory} have no step on record in common; '
                           'train both with the same cadence.log.')
    if first is None:
        longer = [f'; {side.name} goes on to step {max(side.records)}' for side in sides
                  if max(side.records) > common[-1]]
        return [f'records: equal at all {len(common)} steps that are in both, up to step {last}{"".join(longer)}.']
    name = next(name for name in replay.STABLE if a[first][name] != b[first][name])
    return [f'records: equal at {sum(step <= last for step in common)} of {len(common)} steps that are in both; '
            f'the first that differs is step {first}: {name} {a[first][name]} in A, {b[first][name]} in B.']
