"""The directory of a run: what it was made from, its checkpoints and its record."""
import fcntl
import importlib.metadata
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lm import config, records
from lm.config import files
from lm.parallel import processes, sharding
from lm.train import checkpoint, metrics, step

PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'sentencepiece')


class Busy(config.Error):
    """Another process is training in the directory."""


class Run:
    """The directory of a run while it trains, in one process or several: its checkpoints, its record, its stop request.
    """

    def __init__(self, directory, experiment):
        self.directory = Path(directory)
        self.stop, self.locks = processes.Stop(), []
        mark = processes.decide(lambda: _claim(self.directory, self.locks))
        _check_shared(self.directory, mark)
        settings = {key: repr(value) for key, value in config.flatten(experiment.config).items()}
        processes.agree({'jax': jax.__version__, **settings})
        devices = jax.devices()  # collective: a process that called it alone would wait for the others
        processes.decide(lambda: _record(self.directory, experiment, devices))
        self.store = checkpoint.Store(self.directory / 'checkpoints', experiment.config.cadence.keep)
        self.steps = experiment.config.steps
        self.writer = None
        self.rewind(max(self.store.steps(), default=0))

    def rewind(self, step):
        """Drops the record after `step`, which will be written again, and reads the checkpoints' scores from it."""
        if not processes.first():
            self.writer = metrics.NullWriter()
            return
        if self.writer:
            self.writer.close()
        records.rewind(self.directory, step)
        for record in records.read(self.directory):
            if 'valid/loss' in record:
                self.store.score(record['step'], record.get(records.COMPARED, record['valid/loss']))
        self.writer = metrics.Writer(self.directory, self.steps, step)

    def note_offset(self, step, offset):
        """Records the offset of the data after `step`, the batches that a rollback skipped, where it has changed."""
        if processes.first() and records.offset(records.read(self.directory), step) != offset:
            self.writer.write(step, {'offset': offset})

    def close(self):
        """Waits for the save in flight, closes the record, and restores signal handlers."""
        self.stop.restore()
        self.writer.close()
        self.store.close()
        for lock in self.locks:
            lock.close()


def _claim(directory, locks):
    """Locks a run's directory, adds the open lock file to `locks`, and returns the mark that it wrote there.

    Raises config.Error if it cannot be written, Busy if another process has it.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / 'lock', 'w')
    except OSError as error:
        raise config.Error(f'cannot write to {directory}: {error.strerror}; give another --workdir.') from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise Busy(f'another process is training in {directory}; wait for it, or give another --workdir.') from error
    locks.append(lock)
    mark = f'{socket.gethostname()} {os.getpid()} {time.time()}'
    lock.write(mark)
    lock.flush()
    return mark


def _check_shared(directory, mark, patience=20):
    """Raises config.Error unless all hosts read process 0's mark in the directory, within `patience` seconds."""
    path, until = directory / 'lock', time.monotonic() + patience
    while not (shared := path.exists() and path.read_text() == mark) and time.monotonic() < until:
        time.sleep(0.5)
    apart = [host for host, sees in enumerate(processes.gather(shared)) if not sees]
    if apart:
        raise config.Error(f'{directory} on host {apart[0]} is not the directory of host 0; '
                           'give a --workdir on a file system that all hosts share.')


def _record(directory, experiment, devices):
    """Writes what the run is made from, or checks that it is the same as when the directory was begun.

    A run that has taken no step on record yet, such as one whose data was missing, holds no directory for itself.
    """
    path, checkpoints = directory / 'config.json', directory / 'checkpoints'
    begun = bool(records.read(directory)) or (checkpoints.is_dir() and any(checkpoints.iterdir()))
    if begun and path.exists() and (changed := differences(read(directory), experiment.config)):
        raise config.Error(f'{directory} belongs to another experiment: {changed}; '
                           'give another --workdir, or the values it was begun with.')
    if path.exists() and (checkpoints / str(experiment.config.steps)).is_dir():
        return  # finished: its record of how it was made stays
    shutil.copyfile(experiment.file, directory / 'experiment.py')
    about = {'config': config.dump(experiment.config), 'file': str(experiment.file), 'command': sys.argv,
             'device': devices[0].device_kind, 'devices': len(devices),
             'commit': _commit(), 'versions': {'python': sys.version.split()[0], **_versions()}}
    files.replace(path, json.dumps(about, indent=1) + '\n')


def check_data(was, now):
    """Raises config.Error unless two metas of checkpoints name the same data."""
    for name in sorted({*was['data'], *now['data']}):
        before, after = (meta['data'].get(name) for meta in (was, now))
        if before != after:
            raise config.Error(f'the checkpoint was trained on other data: {name} was {before} and is {after}; '
                               'restore what it was, or give another --workdir.')


def differences(was, now):
    """Returns in words the settings in which two experiments compute something else, '' for none."""
    changed = {key: pair for key, pair in config.diff(was, now).items() if not records.free(key)}
    return ', '.join(f'{key} ({old} there, {new} here)' for key, (old, new) in changed.items())


def _commit():
    """Returns the git commit of the code, '+' behind it where files differ from it, or '' outside git."""
    here = Path(__file__).parent

    def git(*words):
        return subprocess.run(['git', '-C', str(here), *words], capture_output=True, text=True).stdout.strip()
    try:
        return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '--untracked-files=no') else '')
    except FileNotFoundError:
        return ''


def _versions():
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = 'absent'
    return versions


def read(directory):
    """Returns the configuration that the run in a directory was begun with."""
    path = Path(directory) / 'config.json'
    if not path.exists():
        raise config.Error(f'{directory} holds no run; give the --workdir of an `lm train`.')
    try:
        return config.build(json.loads(path.read_text(encoding='utf-8'))['config'], Path(directory) / 'experiment.py')
    except config.Error:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # a damaged file can be wrong anywhere
        raise config.Error(f'{path} is no record of a run ({config.first_line(error)}); repair it, or leave the run '
                           'out.') from error


def keep_tokenizer(directory, source):
    """Copies a fitted tokenizer's directory, if there is one, into a run's, which can then be used without its data."""
    if Path(source).is_dir():
        shutil.copytree(source, Path(directory) / 'tokenizer', dirs_exist_ok=True)


class Trained(NamedTuple):
    """A trained model: the run's settings and tokenizer, and the parameters to use, of `step`, on a mesh."""

    settings: Any
    encoder: Any
    params: dict
    step: int
    mesh: jax.sharding.Mesh


def load(directory, number=0, devices=None):
    """Returns the Trained of a run at a saved step (0: the newest), spread over all devices or those given."""
    settings = read(directory)
    mesh = sharding.make_mesh({'data': -1}, jax.devices() if devices is None else devices)
    params, reached = saved(settings, directory, number, mesh)
    encoder = settings.data.tokenizer.fit((), Path(directory) / 'tokenizer').exact()
    return Trained(settings, encoder, params, reached, mesh)


def saved(settings, directory, number, mesh):
    """Returns (parameters on a mesh, step) of a run's checkpoint, the newest for a `number` of 0.

    They are the optimizer's average where it keeps one; else the parameters alone are read.
    """
    wanted = step.placed(settings, mesh)._asdict()
    if settings.optimizer.averaged(wanted['optimizer'], wanted['params']) is wanted['params']:
        wanted = {'params': wanted['params'], 'step': wanted['step']}
    store = checkpoint.Store(Path(directory) / 'checkpoints')
    try:
        restored = store.restore(wanted, number or None)
    finally:
        store.close()
    if restored is None:
        raise config.Error(f'{directory} holds no checkpoint yet; wait until the run has saved one.')
    state, _ = restored
    return settings.optimizer.averaged(state.get('optimizer'), state['params']), int(state['step'])
