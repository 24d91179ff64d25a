"""What runs and sweeps have on record: metrics.jsonl, failed.json and sweep.json, read with what is wrong with them."""
import bisect
import functools
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

from lm.config import Error, checksums, files

RECORD, DAMAGED, FAILED, SWEEP = 'metrics.jsonl', 'metrics.jsonl.damaged', 'failed.json', 'sweep.json'
COMPARED = 'valid/compared'  # after the last step: the loss on the batches that the validations before it read
# Dotted keys of an experiment that affect no result, with all inside them: a resumed run may change them. The last line
# is as older runs have it on record.
FREE = ('mesh', 'zero', 'cadence', 'diagnosis', 'objective.sample', 'objective.baselines', 'data.max_rejected',
        'start.trust',
        *(f'model.execution.{name}' for name in ('remat', 'unroll', 'kernel', 'vocab_chunks', 'pipeline')),
        'log_every', 'eval_every', 'eval_batches', 'save_every', 'keep', 'sample', 'baselines', 'spike', 'noise_scale')
SEEDS = ('seed', 'data.seed')  # what two runs of one variant differ in
STEPS = 2 ** 53  # more than any run has
TRIAL = re.compile(r'[\w-][\w.-]{0,199}', re.ASCII)  # the name of a trial, which is that of its directory
LISTING = {'experiment': str, 'given': [str], 'config': dict, 'rule': dict | None, 'trials': {str: dict}}


def free(key):
    """Returns whether the value at a dotted key of an experiment affects no result."""
    return any(f'{key}.'.startswith(f'{other}.') for other in FREE)


def read(directory):
    """Returns the records of a run, a list of dicts of numbers with 'step'; None for a number that is not finite.

    A line cut short by a kill at the end is left out. Other lines that are damaged are left out with a warning that has
    their numbers; a value that is no number counts as not finite. Raises Error where the file cannot be read.
    """
    lines = _lines(directory)
    if faults := _faults(lines):
        files.warn(f'{Path(directory) / RECORD}: {faults}; what cannot be read is left out here, and a resumed run '
                   f'moves it to {DAMAGED}.')
    return [line.record for line in lines if line.record]


def intact(directory):
    """Returns the records of a run as `read` does; raises Error where a line is damaged: it may have told which batches
    the run skipped.
    """
    lines = _lines(directory)
    if faults := _faults(lines):
        raise Error(f'{Path(directory) / RECORD} is damaged ({faults}), and the run may have noted there which batches '
                    'it skipped; repair the lines, or delete them if it never did.')
    return [line.record for line in lines]


def rewind(directory, step):
    """Drops the records of steps after `step`: what a resumed run will write again. Lines that are no record are moved
    to metrics.jsonl.damaged, with a warning. Atomic; raises Error where nothing can be written.
    """
    path, aside = Path(directory) / RECORD, Path(directory) / DAMAGED
    lines = _lines(directory)
    damaged = [line for line in lines if not line.record]
    try:
        if damaged:
            before = files.content(aside) if os.path.lexists(aside) else b''
            files.replace(aside, before + b''.join(line.text + b'\n' for line in damaged))
            files.warn(f'{path}: {_faults(damaged)}; moved to {DAMAGED}.')
        kept = [line.text for line in lines if line.record and line.record['step'] <= step]
        files.replace(path, b''.join(text + b'\n' for text in kept))
    except OSError as error:
        raise Error(f'cannot write to {directory}: {error.strerror}; free some space and run the same command '
                    'again.') from error


class Line(NamedTuple):
    """A line of metrics.jsonl: its number from 1, its bytes, its record or None, and what is wrong with it or ''."""

    number: int
    text: bytes
    record: dict | None
    fault: str


def _lines(directory):
    """Returns the [Line] of a run's metrics.jsonl, without one that a kill has cut short at the end."""
    path = Path(directory) / RECORD
    try:
        *ended, last = files.content(path).split(b'\n')
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Error(f'cannot read {path}: {error.strerror}; repair it, or leave the run out.') from error
    cut = last.startswith(b'{') and b'}' not in last  # what stands behind a whole line is damage, not a kill
    texts = [*ended, *([] if cut else [last])]
    return _in_order([Line(i, text, *_record(text)) for i, text in enumerate(texts, start=1) if text.strip()])


def _record(text):
    """Returns (record or None, what is wrong with it or '') of a line."""
    try:
        record = files.parse_json(text, dict)
    except ValueError as error:
        return None, str(error)
    for name, number in (('step', record.get('step')), ('offset', record.get('offset', 0))):
        if type(number) is not int or not 0 <= number < STEPS:
            return None, f'{name} is {str(number)[:50]}'
    numbers = {name: value if type(value) is int or (type(value) is float and math.isfinite(value)) else None
               for name, value in record.items()}
    wrong = [name for name, value in numbers.items() if value is None and type(record[name]) not in (float, type(None))]
    return numbers, f'{wrong[0]} is no number'[-100:] if wrong else ''


def _in_order(lines):
    """Returns [Line], without the record of those out of order: steps never decrease, and a step has each name once.

    Of the records, a longest series of steps that do not decrease is kept; of equal names at one step, the last.
    """
    rows = [line for line in lines if line.record]
    kept = {rows[i].number for i in _ascending([line.record['step'] for line in rows])}
    later, known, faults = None, set(), {}  # a step, and the names of its records
    for line in reversed(rows):
        step, names = line.record['step'], line.record.keys() - {'step', 'offset'}
        if line.number not in kept:
            faults[line.number] = f'step {step} is out of order'
        elif step == later and names & known:
            faults[line.number] = f'step {step} is there twice'
        else:
            later, known = step, names | known if step == later else names
    return [line._replace(record=None, fault=faults[line.number]) if line.number in faults else line for line in lines]


def _ascending(steps):
    """Returns the indices of a longest subsequence of numbers that does not decrease."""
    if all(a <= b for a, b in zip(steps, steps[1:])):
        return range(len(steps))
    tails, ends, before = [], [], []  # of the best subsequence of each length: its last number and index
    for i, step in enumerate(steps):
        place = bisect.bisect_right(tails, step)
        before.append(ends[place - 1] if place else None)
        tails[place:place + 1], ends[place:place + 1] = [step], [i]
    kept, i = [], ends[-1]
    while i is not None:
        kept.append(i)
        i = before[i]
    return kept


def _faults(lines):
    """Returns in words which lines are damaged, how many, and the first fault; '' where none is."""
    damaged = [line for line in lines if line.fault]
    if not damaged:
        return ''
    numbers = ', '.join(str(line.number) for line in damaged[:5]) + ', ...' * (len(damaged) > 5)
    return (f'line {numbers}: {damaged[0].fault}' if len(damaged) == 1 else
            f'{len(damaged)} lines, {numbers}: {damaged[0].fault}')


def offset(records, step):
    """Returns by how many batches the data is ahead of step `step` (from 0): a run goes round what is not finite."""
    known = [record['offset'] for record in records if 'offset' in record and record['step'] <= step]
    return known[-1] if known else 0


def finite(value):
    """Returns JSON-able data, nested or not, with None for floats that are not finite, which JSON cannot express."""
    if isinstance(value, dict):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def failure(directory):
    """Returns why the trial of a sweep failed, as its worker has noted, '' where it has not."""
    path = Path(directory) / FAILED
    if not os.path.lexists(path):
        return ''
    try:
        return files.read_json(path, {'error': str}, '')['error'] or 'it has no message'
    except Error:
        return f'its {FAILED} cannot be read'


def sweep(directory):
    """Returns the sweep.json of a directory, None where there is none; raises Error where it is damaged.

    Its items are those of LISTING: experiment (a path), given (the overrides of all trials), config, rule, and trials
    ({name: overrides}). It is read again where the file has changed, and shared: do not change it.
    """
    path = Path(directory) / SWEEP
    try:
        stamp = checksums.stamp(path)
    except OSError:
        stamp = None
    if stamp is None and not os.path.lexists(path):
        return None
    return _listing(path, stamp)


@functools.lru_cache(8)
def _listing(path, stamp):
    about = files.read_json(path, LISTING, 'repair it, or give the directories of its trials.')
    for name in about['trials']:
        if not TRIAL.fullmatch(name):
            raise Error(f'{path} is damaged ({name[:100]!r} is no name of a trial); repair it, or give the directories '
                        'of its trials.')
    return about
