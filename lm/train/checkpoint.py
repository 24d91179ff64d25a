"""Saves and restores pytrees of arrays by step: asynchronous, atomic, onto any mesh. The only file that knows orbax.

Arrays are saved with their checksums, which are the same on every mesh and which every restore compares: the files of
orbax have none of values.
"""
import contextlib
import errno
import gc
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from lm import config, trees
from lm.parallel import processes
from lm.train import quiet

STATE, META = 'state', 'meta'
# Seconds for the reads that a failed restore leaves in flight, before their buffers are freed: tensorstore was seen to
# deadlock where the garbage collector freed them in the middle of the next restore.
SETTLE = 2.0
PATTERN = frozenset('*?[]')  # orbax lists a checkpoint's parts by a glob of its path, and then does not see them
checksum = jax.jit(trees.checksums)  # of one array at a time: one program for all arrays of a shape
FULL = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]


class Fault(NamedTuple):
    """Why a checkpoint cannot be read. damage: whether its files are wrong, rather than out of reach for the moment."""

    text: str
    damage: bool


ABSENT = Fault('it is not there', False)


def check_name(directory):
    """Raises config.Error where checkpoints in a directory could be saved and not read."""
    if PATTERN & set(name := str(Path(directory).absolute())):
        raise config.Error(f'{name!r} has one of {" ".join(sorted(PATTERN))} in its name, and checkpoints saved there '
                           'cannot be read; give another --workdir.')


def steps(directory):
    """Returns the steps saved in a directory, oldest first."""
    names = [path.name for path in Path(directory).iterdir() if path.is_dir()] if os.path.isdir(directory) else []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def restore(directory, abstract, step=None):
    """Returns (state, meta) of a saved step, by default the newest; None where nothing was saved. Changes nothing.

    `abstract` is the state's tree of ShapeDtypeStructs with shardings, or a part of it; its mesh need not be the one
    saved from. Raises config.Error where that checkpoint cannot be read: only a run itself goes back to an older one.
    """
    while (saved := processes.decide(lambda: steps(directory))) or step is not None:
        chosen = saved[-1] if step is None else step
        restored, fault = _restore(directory, chosen, abstract) if chosen in saved else (None, ABSENT)
        if fault is None:
            return restored
        newest = processes.decide(lambda: steps(directory))
        if step is None and newest and newest[-1] > chosen:
            continue  # its run has saved the next one meanwhile, and deleted this
        others = [other for other in newest if other != chosen]
        raise config.Error(f'checkpoint {chosen} in {directory} cannot be read: {fault.text}; the steps there are '
                           f'{newest}{f", try {others[-1]}" if others else ""}.')
    return None


def metas(directory):
    """Returns {step: meta} of the saved steps whose meta can be read, newest first."""
    known = {}
    for step in steps(directory)[::-1]:
        with contextlib.suppress(Exception):  # orbax raises many kinds for a file that is broken
            known[step], _ = _meta(Path(directory).absolute() / str(step))
    return known


def _restore(directory, step, abstract):
    """Returns ((state, meta), None), or (None, the Fault of the first host that has one)."""
    folder = Path(directory).absolute() / str(step)
    (state, meta, saved), fault = _read(folder, abstract)
    faults = processes.gather(fault)
    for host, other in enumerate(faults):
        if other:
            return None, Fault(f'host {host}: {other[0]}' if len(faults) > 1 else other[0], other[1])
    if wrong := [name for name, value in _checksums(state).items() if saved.get(name, value) != value]:
        return None, Fault(f'{wrong[0]} is not what was saved, by its checksum', True)
    return (state, meta), None


def _read(folder, abstract):
    """Returns ((state, meta, checksums), None) of a checkpoint's folder, or (Nones, Fault); not a collective."""
    try:
        if odd := [path for path in folder.glob('*/**/*') if not (path.is_file() or path.is_dir())]:  # a FIFO: no end
            raise ValueError(f'{odd[0]} is no file')
        meta, saved = _meta(folder)
        whole = ocp.PLACEHOLDER not in jax.tree.leaves(abstract)
        places = jax.tree.map(lambda leaf: ocp.RestoreArgs() if leaf is ocp.PLACEHOLDER
                              else ocp.checkpoint_utils.construct_restore_args(leaf), abstract)
        with quiet.all_threads():
            return (ocp.PyTreeCheckpointHandler().restore(folder / STATE, args=ocp.args.PyTreeRestore(
                item=abstract, restore_args=places, partial_restore=whole)), meta, saved), None
    except Exception as error:  # orbax and tensorstore raise many kinds for a file that is broken
        text = config.first_line(error).partition('. See full')[0]
        fault = Fault(text[:300], not isinstance(error, (MemoryError, jax.errors.JaxRuntimeError)))
    with quiet.all_threads():
        time.sleep(SETTLE)
        gc.collect()
    return (None, None, None), _unreadable(folder) or fault


def _meta(folder):
    """Returns (meta, {name: checksum} of the arrays) of a checkpoint's folder; {} for one of an older version."""
    meta = dict(ocp.JsonCheckpointHandler().restore(folder / META, args=ocp.args.JsonRestore()))
    known = meta.pop('checksum', None)
    if (known is not None and known != config.fingerprint(meta)) or 'offset' not in meta:  # older ones have no checksum
        raise ValueError('its meta is not what was saved')
    return meta, meta.pop('checksums', {})


def checksums(folder):
    """Returns {name: checksum} of the arrays of a checkpoint in a folder, as they were saved."""
    try:
        return _meta(folder)[1]
    except Exception as error:  # orbax raises many kinds for a file that is broken
        raise config.Error(f'{folder} cannot be read: {config.first_line(error)}; try another step.') from error


def _checksums(tree):
    """Returns {name: checksum} of the arrays in a tree."""
    arrays = {name: leaf for name, leaf in trees.flatten(tree).items() if leaf is not ocp.PLACEHOLDER}
    return {name: int(value) for name, value in jax.device_get({n: checksum(x) for n, x in arrays.items()}).items()}


def _unreadable(folder):
    """Returns the Fault of the first file in a folder that the system does not let this process read, or None."""
    try:
        for path in sorted(folder.rglob('*')):
            if path.is_file():
                with path.open('rb') as file:
                    while file.read(2 ** 24):
                        pass
    except OSError as error:
        return Fault(f'{error.filename}: {error.strerror}', False)
    return None


@dataclass
class Store:
    """Checkpoints under a directory as the run that writes them sees them, of which the last `keep` are kept, and the
    one with the lowest score.

    Every method is collective: all processes call it, each writes and reads its shards, process 0 decides what is
    deleted.
    """

    directory: Path
    keep: int = 2

    def __post_init__(self):
        self.directory = Path(self.directory).absolute()
        self.scores, self.first, self.proved = {}, None, False  # (step, abstract state) of the first save; if read back
        quiet.saves()
        self._open()

    def _open(self):
        options = ocp.CheckpointManagerOptions(  # lightweight: what orbax notes of steps, maybe damaged, is unread
            create=True, enable_async_checkpointing=True, max_to_keep=None, lightweight_initialize=True)
        try:
            self.manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise config.Error(f'cannot write checkpoints to {self.directory}: {error.strerror}; '
                               'try another --workdir.') from error

    def steps(self):
        """Returns the saved steps, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, step, state, meta):
        """Starts to write state and the JSON-able meta as `step`, asynchronously and atomically.

        Older checkpoints are deleted once it is complete. Raises config.Error when the save before this one failed,
        e.g. on a full disk, or checkpoints are gone that this run has saved.
        """
        self.wait()
        self.check()
        self.prune()
        if step in self.steps():
            return
        meta = {**meta, 'checksums': _checksums(state)}
        meta['checksum'] = config.fingerprint(meta)
        self._guard(lambda: self.manager.save(step, args=ocp.args.Composite(
            **{STATE: ocp.args.PyTreeSave(state), META: ocp.args.JsonSave(meta)})))
        if self.first is None:
            self.first = step, jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None)), state)

    def wait(self):
        """Returns when the save in flight is complete on disk."""
        self._guard(self.manager.wait_until_finished)

    def check(self):
        """Raises config.Error where a checkpoint is no longer on disk that this run has saved or found there."""
        if gone := processes.decide(lambda: sorted(set(self.steps()) - set(steps(self.directory)))):
            raise config.Error(f'checkpoint {gone[0]} was removed from {self.directory} while the run trained; '
                               'run the same command again, which goes on from what is there.')

    def _guard(self, write):
        """Calls write(), and raises config.Error where the disk is at fault."""
        try:
            with quiet.all_threads():
                write()
        except jax.errors.JaxRuntimeError:
            raise  # a fault of the devices or of another host, not of the disk
        except (OSError, ValueError, RuntimeError) as error:
            kept = (steps(self.directory) or ['none'])[-1]
            fault = next((words for words in FULL if words in str(error)), config.first_line(error)[:300])
            raise config.Error(f'saving to {self.directory} failed: {fault}; the last good checkpoint is {kept}; '
                               'free some space and run the same command again.') from error

    def score(self, step, value):
        """Sets the validation loss of a saved step; the lowest is kept."""
        self.scores[step] = value

    def best(self):
        """Returns the saved step with the lowest score, or None."""
        scored = [step for step in self.steps() if step in self.scores]
        return min(scored, key=self.scores.get, default=None)

    def prune(self):
        """Deletes all but the last `keep` checkpoints and the best, once the first that was saved can be read back."""
        def superfluous():
            saved = self.steps()
            return sorted(set(saved) - set(saved[-self.keep:]) - {self.best()})
        old = processes.decide(superfluous)
        if old and self.first and not self.proved:
            self._read_back(*self.first)
        for step in old:
            self.manager.delete(step)

    def _read_back(self, step, abstract):
        """Raises config.Error unless a checkpoint can be read; one array at a time, for the memory."""
        leaves, tree = jax.tree.flatten(abstract)
        for number in range(len(leaves)):
            one = tree.unflatten([leaf if i == number else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)])
            if fault := _restore(self.directory, step, one)[1]:
                raise config.Error(f'checkpoint {step} in {self.directory}, just saved, cannot be read: {fault.text}; '
                                   'nothing older was deleted; try another --workdir.')
        self.proved = True

    def restore(self, abstract):
        """Returns (state, meta) of the newest checkpoint that can be read; None where nothing was saved.

        `abstract` is the state's tree of ShapeDtypeStructs with shardings; its mesh need not be the one saved from. A
        damaged checkpoint is moved to `unreadable`, with a warning, for the one before it. Raises config.Error where
        none is left, or one is not proved damaged: a file may not be read, or memory is short.
        """
        self.wait()
        saved = processes.decide(self.steps)
        for candidate in saved[::-1]:
            restored, fault = _restore(self.directory, candidate, abstract)
            if fault is None:
                return restored
            if candidate == saved[0] or not fault.damage:
                raise config.Error(f'checkpoint {candidate} in {self.directory} cannot be read: {fault.text}; '
                                   f'the steps there are {saved}.')
            logging.getLogger('absl').warning('checkpoint %d in %s cannot be read (%s); taking the one before it.',
                                              candidate, self.directory, fault.text)
            processes.decide(lambda step=candidate: self._put_aside(step))
            self.manager.close()
            self._open()
        return None

    def _put_aside(self, step):
        aside = self.directory.parent / 'unreadable' / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        (self.directory / str(step)).rename(aside)

    def close(self):
        """Waits for the save in flight and releases the directory."""
        self.wait()
        self._guard(self.manager.close)
