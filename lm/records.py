"""The record of a run, metrics.jsonl: reading it, and dropping what a resumed run will write again."""
import contextlib
import json
import math
from pathlib import Path

from lm.config import files

RECORD = 'metrics.jsonl'
# Fields of an experiment that change neither what is computed nor its order: a run may go on with other values.
FREE = ('mesh', 'zero', 'log_every', 'eval_every', 'eval_batches', 'save_every', 'keep', 'sample', 'baselines',
        'spike', 'noise_scale', 'data.max_rejected')
SEEDS = ('seed', 'data.seed')  # what two runs of one variant differ in


def free(key):
    """Returns whether a dotted key is of one of the fields in FREE."""
    return key in FREE or key.split('.')[0] in FREE


def read(directory):
    """Returns the records of a run, a list of dicts with 'step'; a line cut short by a kill is left out."""
    path = Path(directory) / RECORD
    if not path.exists():
        return []
    records = []
    for line in path.read_text().split('\n'):
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict)]


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


def rewind(directory, step):
    """Drops the records of steps after `step`: what a resumed run will write again. Atomic."""
    kept = [record for record in read(directory) if record['step'] <= step]
    files.replace(Path(directory) / RECORD, ''.join(json.dumps(record) + '\n' for record in kept))
