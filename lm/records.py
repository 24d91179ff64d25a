"""The record of a run, metrics.jsonl: reading it, and dropping what a resumed run will write again."""
import contextlib
import json
import math
from pathlib import Path

from lm.config import files

RECORD = 'metrics.jsonl'
COMPARED = 'valid/compared'  # after the last step: the loss on the batches that the validations before it read
# Dotted keys of an experiment that affect no result, with all inside them: a resumed run may change them. The last line
# is as older runs have it on record.
FREE = ('mesh', 'zero', 'cadence', 'diagnosis', 'objective.sample', 'objective.baselines', 'data.max_rejected',
        *(f'model.execution.{name}' for name in ('remat', 'unroll', 'kernel', 'vocab_chunks', 'pipeline')),
        'log_every', 'eval_every', 'eval_batches', 'save_every', 'keep', 'sample', 'baselines', 'spike', 'noise_scale')
SEEDS = ('seed', 'data.seed')  # what two runs of one variant differ in


def free(key):
    """Returns whether the value at a dotted key of an experiment affects no result."""
    return any(f'{key}.'.startswith(f'{other}.') for other in FREE)


def read(directory):
    """Returns the records of a run, a list of dicts with 'step'; a line cut short by a kill is left out."""
    path = Path(directory) / RECORD
    if not path.exists():
        return []
    records = []
    for line in path.read_text().split('\n'):
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return [record for record in records if isinstance(record, dict) and isinstance(record.get('step'), int)]


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
