"""Saves and restores pytrees of arrays by step: asynchronous, atomic, onto any mesh. The only file that knows orbax."""
import gc
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging

from lm import config
from lm.parallel import processes

STATE, META = 'state', 'meta'
# Seconds for the reads that a failed restore leaves in flight to end, before their buffers are freed: tensorstore was
# seen to deadlock where the garbage collector freed them in the middle of the next restore.
SETTLE = 2.0


@dataclass
class Store:
    """Checkpoints under a directory, of which the last `keep` are kept, and the one with the lowest score.

    Every method is collective: all processes call it, each writes and reads its shards, process 0 decides what is
    deleted.
    """

    directory: Path
    keep: int = 2

    def __post_init__(self):
        self.directory = Path(self.directory).absolute()
        self.scores = {}
        options = ocp.CheckpointManagerOptions(create=True, enable_async_checkpointing=True, max_to_keep=None)
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
        e.g. on a full disk.
        """
        self.wait()
        self.prune()
        if step not in self.steps():
            self._guard(lambda: self.manager.save(step, args=ocp.args.Composite(
                **{STATE: ocp.args.PyTreeSave(state), META: ocp.args.JsonSave(meta)})))

    def wait(self):
        """Returns when the save in flight is complete on disk."""
        self._guard(self.manager.wait_until_finished)

    def _guard(self, write):
        """Calls write(), and raises config.Error where the disk is at fault."""
        try:
            write()
        except jax.errors.JaxRuntimeError:
            raise  # a fault of the devices or of another host, not of the disk
        except (OSError, ValueError, RuntimeError) as error:
            kept = self.steps()[-1] if self.steps() else 'none'
            raise config.Error(f'saving to {self.directory} failed: {config.first_line(error)[:300]}; the last good '
                               f'checkpoint is {kept}; free some space and run the same command again.') from error

    def score(self, step, value):
        """Sets the validation loss of a saved step; the lowest is kept."""
        self.scores[step] = value

    def best(self):
        """Returns the saved step with the lowest score, or None."""
        scored = [step for step in self.steps() if step in self.scores]
        return min(scored, key=self.scores.get, default=None)

    def prune(self):
        """Deletes all but the last `keep` checkpoints and the best."""
        def superfluous():
            steps = self.steps()
            return sorted(set(steps) - set(steps[-self.keep:]) - {self.best()})
        for step in processes.decide(superfluous):
            self.manager.delete(step)

    def restore(self, abstract, step=None):
        """Returns (state, meta) of `step`, or of the newest that can be read; None where nothing was saved.

        `abstract` is the state's tree of ShapeDtypeStructs with shardings, or a part of it; its mesh need not be the
        one saved from. An unreadable checkpoint is moved to `unreadable`, with a warning, for the one before it.
        """
        self.wait()
        steps = processes.decide(self.steps)
        for candidate in steps[::-1] if step is None else [step]:
            restored, fault = self._try(candidate, abstract)
            faults = [f'host {i}: {other}' if restored else other
                      for i, other in enumerate(processes.gather(fault)) if other]
            if not faults:
                return restored
            if step is not None or candidate == steps[0]:
                raise config.Error(f'checkpoint {candidate} in {self.directory} cannot be read: {faults[0]}; '
                                   f'the steps there are {steps}.')
            logging.warning('checkpoint %d in %s cannot be read (%s); taking the one before it.', candidate,
                            self.directory, faults[0])
            processes.decide(lambda step=candidate: self._put_aside(step))
            self.manager.reload()
        return None

    def meta(self, step):
        """Returns the meta of a saved step, or None where it cannot be read."""
        try:
            return ocp.JsonCheckpointHandler().restore(self._folder(step) / META, args=ocp.args.JsonRestore())
        except Exception:  # orbax raises many kinds for a file that is broken
            return None

    def _folder(self, step):
        return self.manager.directory / str(step)

    def _try(self, step, abstract):
        """Returns ((state, meta), None), or (None, why they cannot be read); not a collective."""
        folder = self._folder(step)
        placed = ocp.checkpoint_utils.construct_restore_args(abstract)
        args = ocp.args.PyTreeRestore(item=abstract, restore_args=placed, partial_restore=True)
        try:
            state = ocp.PyTreeCheckpointHandler().restore(folder / STATE, args=args)
            return (state, ocp.JsonCheckpointHandler().restore(folder / META, args=ocp.args.JsonRestore())), None
        except Exception as error:  # orbax and tensorstore raise many kinds for a file that is broken
            fault = config.first_line(error)[:300]
        time.sleep(SETTLE)
        gc.collect()
        return None, fault

    def _put_aside(self, step):
        aside = self.directory.parent / 'unreadable' / str(step)
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        (self.directory / str(step)).rename(aside)

    def close(self):
        """Waits for the save in flight and releases the directory."""
        self.wait()
        self.manager.close()
