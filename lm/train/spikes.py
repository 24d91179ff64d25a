"""Loss spikes: where a run's loss jumps, and spikes/STEP.json, the record of a step with its batch's documents."""
import bisect
import collections
import json
import math
import os
import re
from pathlib import Path

from lm import records
from lm.config import Error, files

NAME = re.compile(r'[1-9][0-9]{0,15}\.json')  # of a step
NUMBER = float | int | None  # None for one that is not finite
ROW = {'name': str, 'layer': int | None, 'gradient': NUMBER, 'weight': NUMBER, 'update': NUMBER, 'bits': [int]}
RECORD = {'step': int, 'loss': NUMBER, 'median': NUMBER, 'deviation': NUMBER, 'batch': int, 'passages': [dict],
          'layers': ([ROW], type(None))}
WINDOW, ENOUGH = 64, 32  # losses that the median is of; how many it takes before any is called high
LEAST = 1e-3  # of the median: the least that counts as one deviation


class Detector:
    """Finds jumps of the loss, of which none steers the run.

    A loss is high that is not finite, or above the median of the last WINDOW by more than `limit` deviations: the
    interquartile range over 1.349, which is the standard deviation of a normal distribution. It jumps where it is high
    and the one before was not. limit: 0 finds none. losses: the last ones, from which a resumed run goes on.
    """

    def __init__(self, limit):
        self.limit = limit
        self.begin([])

    def begin(self, losses):
        """Goes on from the last losses."""
        self.losses, self.sorted, self.high = collections.deque(losses), sorted(losses), False

    def level(self):
        """Returns (median, deviation) of the last losses, or None while they are too few."""
        count = len(self.sorted)
        if count < ENOUGH:
            return None
        low, middle, high = (self.sorted[count * quarter // 4] for quarter in (1, 2, 3))
        return middle, max((high - low) / 1.349, LEAST * abs(middle))

    def observe(self, loss):
        """Takes the loss of the next step; returns {'median', 'deviation'} of those before where it jumps, else None.
        """
        level, was_high = self.level(), self.high
        median, deviation = level or (None, None)
        self.high = bool(self.limit) and (
            not math.isfinite(loss) or (level is not None and loss > median + self.limit * deviation))
        if math.isfinite(loss):
            self.losses.append(loss)
            bisect.insort(self.sorted, loss)
        if len(self.losses) > WINDOW:
            del self.sorted[bisect.bisect_left(self.sorted, self.losses.popleft())]
        return {'median': median, 'deviation': deviation} if self.high and not was_high else None


def describe(about, values, stream, batch, layers=None):
    """Returns the record of a step: `about` it, what it measured, the number of its batch and where that comes from.

    layers: the rows of debug.layers.layer_stats, None until `lm replay` has measured them.
    """
    return {**about, 'loss': values['loss'], 'grad_norm': values['grad_norm'], 'batch': batch, 'layers': layers,
            'passages': [passage._asdict() for passage in stream.passages(batch)]}


def keep(directory, record):
    """Writes the record of a spike and returns the line that tells of it."""
    level = '' if record['median'] is None else f' from about {record["median"]:.4g}'
    fact = f'step {record["step"]}: the loss jumps{level} to {record["loss"]:.4g}'
    try:
        write(directory, record)
    except OSError as error:
        return f'{fact}; it cannot be recorded: {error.strerror}.'
    return f'{fact}: see {path(directory, record["step"])}; lm replay {directory} --step={record["step"]} measures it.'


def path(directory, step):
    """Returns where the record of a step is."""
    return Path(directory) / 'spikes' / f'{step}.json'


def read(directory, step):
    """Returns the record of a step of a run, or None; raises config.Error where it is damaged."""
    file, remedy = path(directory, step), 'delete it, and lm replay writes it again.'
    record = files.read_json(file, RECORD, remedy, optional=True)
    if record and (record['step'] != step or any(len(row['bits']) != 3 for row in record['layers'] or ())):
        raise Error(f'{file} is damaged (it is of step {record["step"]}, or lacks checksums); {remedy}')
    return record


def steps(directory):
    """Returns the steps of a run that have a record, ascending; warns of files that are named for none."""
    folder = Path(directory) / 'spikes'
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for name in names:
        if name.endswith('.json') and not NAME.fullmatch(name):
            files.warn(f'{folder / name} is no record of a step, and is left alone.')
    return sorted(int(name.removesuffix('.json')) for name in names if NAME.fullmatch(name))


def write(directory, record):
    """Writes the record of a step, in place of one that was there; numbers that are not finite become null."""
    file = path(directory, record['step'])
    file.parent.mkdir(exist_ok=True)
    layers = record['layers'] and [records.finite(row) for row in record['layers']]
    text = json.dumps({**records.finite(record), 'layers': layers}, indent=1, ensure_ascii=False)
    files.replace(file, files.sealed(text) + '\n')
