"""The directory of a run: what it was made from, its checkpoints and its record."""
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lm import config, records
from lm.config import beside, checksums, files
from lm.parallel import processes, sharding
from lm.train import checkpoint, lock, metrics, origin, step


class Run:
    """The directory of a run while it trains, in one process or several: its checkpoints, its record, its stop request.
    """

    def __init__(self, directory, experiment):
        self.directory = Path(directory)
        self.stop, self.locks = processes.Stop(), []
        mark = processes.decide(lambda: lock.claim(self.directory, self.locks))
        lock.check_shared(self.directory, mark)
        settings = {key: repr(value) for key, value in config.flatten(experiment.config).items()}
        processes.agree({'jax': jax.__version__, **settings})
        devices = jax.devices()  # collective: a process that called it alone would wait for the others
        processes.decide(lambda: _record(self.directory, experiment, devices))
        self.store = checkpoint.Store(self.directory / 'checkpoints', experiment.config.cadence.keep)
        self.steps = experiment.config.steps
        self.writer, self.reached = None, max(self.store.steps(), default=0)
        if not self.reached and processes.decide(lambda: _saved_once(self.directory, experiment.config.cadence.save)):
            raise config.Error(f'{self.directory}/checkpoints is empty, and by the record it was not; restore it, or '
                               f'remove {records.RECORD} to start over.')
        self.rewind(self.reached)

    def rewind(self, step):
        """Drops the record after `step`, which will be written again, and reads the checkpoints' scores from it."""
        if not processes.first():
            self.writer = metrics.NullWriter()
            return
        if self.writer:
            self.writer.close()
        with lock.writing(self.directory):
            records.rewind(self.directory, step)
            self.writer = metrics.Writer(self.directory, self.steps, step)
        for record in records.read(self.directory):
            if 'valid/loss' in record:
                self.store.score(record['step'], record.get(records.COMPARED, record['valid/loss']))

    def note_offset(self, step, offset):
        """Records the offset of the data after `step`, the batches that a rollback skipped, where it has changed."""
        if processes.first() and records.offset(records.read(self.directory), step) != offset:
            self.writer.write(step, {'offset': offset})

    def check_files(self):
        """Raises config.Error where a file of the run was removed or replaced while it trains."""
        def gone():
            opened = {'lock': self.locks[0], records.RECORD: self.writer.file}
            return [name for name, file in opened.items() if not _is_open(self.directory / name, file)] + [
                name for name in ('config.json', 'experiment.py') if not (self.directory / name).exists()]
        if names := processes.decide(gone):
            raise config.Error(f'{self.directory / names[0]} was removed or replaced while the run trained; what comes '
                               'after the last checkpoint is not saved; run the same command again.')

    def close(self):
        """Waits for the save in flight, closes the record, and restores signal handlers."""
        failing, faults = sys.exc_info()[0] is not None, []
        for end in (self.stop.restore, self.writer.close, self.store.close, *(file.close for file in self.locks)):
            try:
                end()
            except config.Error as fault:  # of a disk that is full: the others are still closed
                faults.append(fault)
        if faults and not failing:
            raise faults[0]


def _saved_once(directory, every):
    """Returns whether a run has recorded steps beyond its second save, before which the first is complete."""
    return every > 0 and max((record['step'] for record in records.read(directory)), default=0) > 2 * every


def _is_open(path, file):
    """Returns whether a path leads to the open file."""
    return path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))


def _record(directory, experiment, devices):
    """Writes what the run is made from, or checks that it is the same as when the directory was begun.

    A run that has taken no step on record yet, such as one whose data was missing, holds no directory for itself.
    """
    path, saved = directory / 'config.json', checkpoint.steps(directory / 'checkpoints')
    begun = path.exists() and (saved or records.read(directory))
    if begun and (changed := changes(known := read(directory, experiment.file), experiment.config)):
        longer = changed.keys() == {'steps'} and known.steps < experiment.config.steps
        remedy = (f"to train on from its parameters add \"start=From('{directory}')\"" if saved and longer else
                  'or the values it was begun with')
        raise config.Error(f'{directory} belongs to another experiment: {differences(known, experiment.config)}; '
                           f'give another --workdir, {remedy}.')
    if begun and experiment.config.steps in saved:
        return  # finished: its record of how it was made stays
    with lock.writing(directory):
        beside.check(experiment)
        origin.write(path, experiment.config, file=str(experiment.file), device=devices[0].device_kind,
                     devices=len(devices))
        beside.keep(experiment, directory)


def check_data(was, now):
    """Raises config.Error unless two metas of checkpoints name the same data."""
    for name in sorted({*was['data'], *now['data']}):
        before, after = (meta['data'].get(name) for meta in (was, now))
        if before != after:
            raise config.Error(f'the checkpoint was trained on other data: {name} was {before} and is {after}; '
                               'restore what it was, or give another --workdir.')


def changes(was, now):
    """Returns {dotted key: (old, new)} of the settings in which two experiments compute something else."""
    return {key: pair for key, pair in config.diff(was, now).items() if not records.free(key)}


def differences(was, now):
    """Returns the `changes` in words, '' for none."""
    return ', '.join(f'{key} ({old} there, {new} here)' for key, (old, new) in changes(was, now).items())


def _about(directory):
    """Returns what config.json says of the run in a directory."""
    return files.read_json(Path(directory) / 'config.json', {'config': dict}, lock.RESTORE)


def read(directory, file=None):
    """Returns the configuration that the run in a directory was begun with.

    `file` is an experiment file to execute where the configuration has types of its own; by default none is.
    """
    path = Path(directory) / 'config.json'
    if not os.path.exists(path):
        here = Path(directory).glob('*/config.json') if os.path.isdir(directory) else ()
        inside = sorted(str(path.parent) for path in here)
        raise config.Error(f'{directory} holds no run{" of its own" * bool(inside)}; give '
                           f'{"one of " + ", ".join(inside) if inside else "the --workdir of an `lm train`"}.')
    about = _about(directory)
    try:
        return config.build(about['config'], file)
    except config.Error as error:
        raise config.Error(f'{error} ({path})') from error


def trusted(directory, trust):
    """Returns the experiment file of a run where its code is trusted, else None."""
    return Path(directory) / 'experiment.py' if trust else None


def keep_tokenizer(directory, tokenizer, fingerprint, source):
    """Copies a fitted tokenizer's directory `source`, if there is one, into that of a run, which can then be used
    without its data; warns where that of a run with checkpoints had none that is whole.

    Raises config.Error where they were trained on other data than that of `fingerprint`, {name: value}.
    """
    saved = checkpoint.metas(Path(directory) / 'checkpoints').values()
    for meta in saved:
        check_data({'data': {name: meta['data'].get(name) for name in fingerprint}}, {'data': fingerprint})
    fault = tokenizer_fault(directory, tokenizer, fingerprint['tokenizer'])
    if not Path(source).is_dir() or (saved and not fault):
        return
    if saved:
        files.warn(f'{fault}; it is made again.')
    place = Path(directory) / 'tokenizer'
    with lock.writing(directory):
        if os.path.lexists(place):
            shutil.rmtree(place)
        shutil.copytree(source, place)


def tokenizer_fault(directory, tokenizer, fingerprint=None):
    """Returns in words what is wrong with the tokenizer that a run's directory keeps, of a `fingerprint` where that is
    known; '' where nothing is.
    """
    place = Path(directory) / 'tokenizer'
    try:
        encoder = tokenizer.fit(None, place).exact()
    except checksums.Damaged as fault:
        return fault.fact
    except config.Error as error:  # of files without checksums, by an older version
        return f'{place} cannot be read ({error})'
    if fingerprint and encoder.fingerprint() != fingerprint:
        return f'{place} is not the tokenizer that the run is trained with'
    return ''


class Trained(NamedTuple):
    """A trained model: the run's settings and tokenizer, and the parameters to use, of `step`, on a mesh."""

    settings: Any
    encoder: Any
    params: dict
    step: int
    mesh: jax.sharding.Mesh


def load(directory, number=0, devices=None, *, trust=False):
    """Returns the Trained of a run at a saved step (0: the newest), spread over all devices or those given.

    trust: whether the run's own code may be executed, its experiment.py and what that imports.
    """
    settings = read(directory, trusted(directory, trust))
    mesh = sharding.make_mesh({'data': -1}, jax.devices() if devices is None else devices)
    params, reached = saved(settings, directory, number, mesh)
    encoder = settings.data.tokenizer.fit(None, Path(directory) / 'tokenizer').exact()
    return Trained(settings, encoder, params, reached, mesh)


def saved(settings, directory, number, mesh):
    """Returns (parameters on a mesh, step) of a run's checkpoint, the newest for a `number` of 0.

    They are the optimizer's average where it keeps one; else the parameters alone are read.
    """
    wanted = step.placed(settings, mesh)._asdict()
    if settings.optimizer.averaged(wanted['optimizer'], wanted['params']) is wanted['params']:
        wanted = {'params': wanted['params'], 'step': wanted['step']}
    restored = checkpoint.restore(Path(directory) / 'checkpoints', wanted, number or None)
    if restored is None:
        raise config.Error(f'{directory} holds no checkpoint; run its command again, or wait where it runs.')
    state, _ = restored
    return settings.optimizer.averaged(state.get('optimizer'), state['params']), int(state['step'])
