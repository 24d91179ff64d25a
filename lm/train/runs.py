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
    """A directory in which one run trains, of one process or several: its checkpoints, its record, when it stops."""

    def __init__(self, directory, experiment):
        self.directory = Path(directory)
        self.stop, self.locks = processes.Stop(), []
        mark = processes.decide(lambda: _claim(self.directory, self.locks))
        _check_shared(self.directory, mark)
        processes.agree({'jax': jax.__version__, **_plain(config.flatten(experiment.config))})
        devices = jax.devices()  # found by all processes together: one that asks alone waits for the others
        processes.decide(lambda: _record(self.directory, experiment, devices))
        self.store = checkpoint.Store(self.directory / 'checkpoints', experiment.config.cadence.keep)
        self.steps = experiment.config.steps
        self.writer = None
        self.rewind(max(self.store.steps(), default=0))

    def rewind(self, step):
        """Starts the record anew after `step`, and takes the scores of what is saved from it."""
        if not processes.first():
            self.writer = metrics.NullWriter()
            return
        if self.writer:
            self.writer.close()
        records.rewind(self.directory, step)
        for record in records.read(self.directory):
            if 'valid/loss' in record:
                self.store.score(record['step'], record['valid/loss'])
        self.writer = metrics.Writer(self.directory, self.steps, step)

    def note_offset(self, step, offset):
        """Records by how many batches the data is ahead of the steps after `step`, where that is new."""
        if processes.first() and records.offset(records.read(self.directory), step) != offset:
            self.writer.write(step, {'offset': offset})

    def close(self):
        """Waits for the save under way, closes the record, and leaves signals as they were."""
        self.stop.forget()
        self.writer.close()
        self.store.close()
        for lock in self.locks:
            lock.close()


def _claim(directory, locks):
    """Adds the open lock file of a run's directory to `locks` and returns the text that is in it now.

    Raises config.Error if it cannot be written or is taken.
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
    """Raises config.Error unless all hosts see process 0's mark in the directory, within `patience` seconds."""
    path, until = directory / 'lock', time.monotonic() + patience
    while not (seen := path.exists() and path.read_text() == mark) and time.monotonic() < until:
        time.sleep(0.5)
    blind = [i for i, found in enumerate(processes.gather(seen)) if not found]
    if blind:
        raise config.Error(f'{directory} on host {blind[0]} is not the directory of host 0; '
                           'give a --workdir on a file system that all hosts share.')


def _plain(values):
    return {key: repr(value) for key, value in values.items()}


def _record(directory, experiment, devices):
    """Writes what the run is made from, or checks that it is the same as when the directory was begun."""
    path = directory / 'config.json'
    if path.exists():
        _check_same(directory, read(directory), experiment.config)
    shutil.copyfile(experiment.file, directory / 'experiment.py')
    about = {'config': config.dump(experiment.config), 'file': str(experiment.file), 'command': sys.argv,
             'device': devices[0].device_kind, 'devices': len(devices),
             'commit': _commit(), 'versions': {'python': sys.version.split()[0], **_versions()}}
    files.replace(path, json.dumps(about, indent=1) + '\n')


def _check_same(directory, was, now):
    changed = differences(was, now)
    if changed:
        raise config.Error(f'{directory} belongs to another experiment: {changed}; '
                           'give another --workdir, or the values it was begun with.')


def check_data(was, now):
    """Raises config.Error unless the data of a checkpoint's meta are those of another."""
    for name in sorted({*was['data'], *now['data']}):
        before, after = (meta['data'].get(name) for meta in (was, now))
        if before != after:
            raise config.Error(f'the checkpoint was trained on other data: {name} was {before} and is {after}; '
                               'restore what it was, or give another --workdir.')


def differences(was, now):
    """Returns in words where two experiments differ in what is computed, '' where they do not."""
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
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = 'absent'
    return found


def read(directory):
    """Returns the configuration that the run in a directory was begun with."""
    path = Path(directory) / 'config.json'
    if not path.exists():
        raise config.Error(f'{directory} holds no run; give the --workdir of an `lm train`.')
    try:
        dumped = json.loads(path.read_text())['config']
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise config.Error(f'{path} is no record of a run ({error}); remove the directory.') from error
    return config.build(dumped, Path(directory) / 'experiment.py')


def keep_tokenizer(directory, source):
    """Copies a fitted tokenizer's directory, if there is one, into a run's, which can then be used without its data."""
    if Path(source).is_dir():
        shutil.copytree(source, Path(directory) / 'tokenizer', dirs_exist_ok=True)


class Trained(NamedTuple):
    """What a run has reached: its settings and tokenizer, and the parameters to use at `step`, on a mesh."""

    settings: Any
    encoder: Any
    params: dict
    step: int
    mesh: jax.sharding.Mesh


def load(directory, number=0, devices=None):
    """Returns what a run has reached at a saved step (0: the newest), over all devices or those given."""
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
