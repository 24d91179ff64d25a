"""The config.json of a sweep's trials, written again from sweep.json where it is damaged or missing."""
import json
import os
import sys

from lm import config, records
from lm.config import files
from lm.sweep.trials import alone
from lm.train import checkpoint, lock, session

CONFIG = 'config.json'


def faults(sweep):
    """Returns {trial id: what is wrong with its config.json} of the trials that have begun, where anything is."""
    known = {}
    for trial in sweep.trials:
        path = trial.directory / CONFIG
        if not any(os.path.lexists(trial.directory / name) for name in (records.RECORD, 'checkpoints')):
            continue
        try:
            files.read_json(path, lock.OURS, '')
        except files.Damaged as fault:
            known[trial.id] = fault.fact
        except config.Error:
            if not os.path.lexists(path) and checkpoint.steps(trial.directory / 'checkpoints'):
                known[trial.id] = f'{path} is missing'
    return known


def mend(sweep, states, cache):
    """Writes the settings of such trials again, with a line that names each, and makes the tokenizers of finished ones
    again that are missing or damaged. states: {trial id: state}.
    """
    if faults(sweep):
        with alone(sweep.directory):  # another worker may have done it meanwhile
            for trial, fault in faults(sweep).items():
                _write(sweep, next(one for one in sweep.trials if one.id == trial), fault)
    for trial in sweep.trials:
        if states[trial.id] == 'finished':
            session.mend_tokenizer(trial.directory, trial.settings, cache)


def _write(sweep, trial, fault):
    """Writes a trial's config.json; what it ran on, and by which commit and versions, is on no other record."""
    path = trial.directory / CONFIG
    about = {'config': config.dump(trial.settings), 'file': str(sweep.directory / 'experiment.py'),
             'command': sys.argv, 'commit': '', 'versions': {}}
    if os.path.lexists(path):
        os.replace(path, f'{path}.damaged')
    files.replace(path, files.sealed(json.dumps(about, indent=1)) + '\n')
    files.warn(f'{fault}; its settings are written again from {records.SWEEP}, without the device, commit and versions '
               'of the run.')
