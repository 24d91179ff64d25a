"""Claims on trials: files that are created exclusively, with a heartbeat while their owner lives and works.

The claim on a trial is the file claims/<trial>.<n> of the highest n. A worker that takes over from a dead owner creates
the file of n + 1, which only one worker can, so that no lock, no server and no synchronised clocks are needed. A claim
that cannot be read tells nothing of its owner: it is watched like that of another machine, and one that appears over
a claim whose owner lives is claimed over by that owner.
"""
import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path

from lm import config, records
from lm.config import files
from lm.parallel import heartbeat

NAME = re.compile(rf'({records.TRIAL.pattern})\.([1-9][0-9]{{0,17}})', re.ASCII)
CLAIM = {'released?': bool, 'host?': str, 'pid?': int}
GARBLED = 'cannot be read as a claim'
PERIOD, DEAD = 2.0, 30.0  # seconds between heartbeats; seconds of an unchanged heartbeat until its owner counts as dead
HUNG, LEAST = 3600.0, 1e-3  # a worker that used less than LEAST of a core in HUNG seconds counts as hung


class Claims:
    """The claims of a sweep's directory as one worker sees them; a context in which its own have a heartbeat."""

    def __init__(self, directory):
        self.folder, self.me = Path(directory) / 'claims', {'host': host(), 'pid': os.getpid()}
        self.own, self.seen, self.count = {}, {}, 0  # {trial: number}, {(trial, number): (heartbeat, since)}, beats
        self.lock, self.ended = threading.Lock(), threading.Event()
        try:
            files.make_directory(self.folder)
        except OSError as error:
            raise config.Error(f'cannot write to {directory}: {error.strerror}; give another --workdir.') from error

    def __enter__(self):
        self.thread = threading.Thread(target=self._heartbeat, name='claims', daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *fault):
        self.ended.set()
        self.thread.join()
        for trial in list(self.own):
            self.release(trial)

    def take(self, trial):
        """Returns whether this worker now has the trial: nobody had it, or its owner released it or is dead."""
        try:
            newest = self.newest().get(trial, 0)
            if newest and self.lives(trial, newest):
                return False
            with self.lock:
                return self._create(trial, newest + 1)
        except OSError as error:
            raise config.Error(f'cannot write to {self.folder}: {error.strerror}; free some space and '
                               'start again.') from error

    def release(self, trial):
        """Releases a trial, which others may then take at once."""
        with self.lock:
            number = self.own.pop(trial)
            with contextlib.suppress(OSError):  # disk full: the heartbeat stops all the same
                files.replace(self._path(trial, number), json.dumps({'released': True}))

    def newest(self):
        """Returns {trial: number of its newest claim}; warns of files that are none, but for hidden ones."""
        numbers = {}
        for name in os.listdir(self.folder):
            parts = NAME.fullmatch(name)
            if parts:
                numbers[parts[1]] = max(int(parts[2]), numbers.get(parts[1], 0))
            elif not name.startswith('.'):
                files.warn(f'{self.folder / name} is no claim, and is left alone.')
        return numbers

    def lives(self, trial, number):
        """Returns whether a claim's owner may live: its heartbeat changes, or was not watched for DEAD seconds yet."""
        claim, text = self._read(trial, number)
        if claim and (claim.get('released') or (claim['host'] == self.me['host'] and not _runs(claim['pid']))):
            return False
        last, since = self.seen.get((trial, number), (None, 0))
        if last != text:
            since = time.monotonic()
            self.seen[trial, number] = text, since
        alive = time.monotonic() - since < DEAD
        if not alive and not claim:
            files.warn(f'{self._path(trial, number)} {GARBLED}: the trial is free, as it has not changed for '
                       f'{DEAD:.0f} s.')
        return alive

    def _read(self, trial, number):
        """Returns (a claim, None for one that is garbled or still being written; what its file holds)."""
        try:
            text = files.content(self._path(trial, number))
            claim = files.parse_json(text, CLAIM)
        except OSError as error:
            return None, str(error)
        except ValueError:
            return None, text
        whole = claim.get('released') or ('host' in claim and 0 < claim.get('pid', 0) < 2 ** 31)
        return claim if whole else None, text

    def _create(self, trial, number):
        """Returns whether this worker now has the claim of a number, which nobody else can have created."""
        try:
            with open(self._path(trial, number), 'x') as file:
                file.write(self._text())
        except FileExistsError:
            return False
        self.own[trial] = number
        return True

    def _path(self, trial, number):
        return self.folder / f'{trial}.{number}'

    def _text(self):
        self.count += 1
        return json.dumps({**self.me, 'beat': self.count})

    def _heartbeat(self):
        watchdog = CpuWatchdog()
        while not self.ended.wait(PERIOD):
            watchdog = watchdog if self.own else CpuWatchdog()
            alive = watchdog.alive(time.monotonic(), time.process_time() - time.thread_time())
            with self.lock, contextlib.suppress(OSError):
                newest = self.newest() if self.own else {}
                for trial in self.own:
                    with contextlib.suppress(OSError):
                        self._beat(trial, newest.get(trial, 0), alive)

    def _beat(self, trial, newest, alive):
        """Leaves if another worker took a trial over; else sends a heartbeat, over a newer claim that is garbled."""
        if newest > self.own[trial]:
            claim, text = self._read(trial, newest)
            if claim:
                _leave(trial)
            elif self.seen.get((trial, newest), ('', 0))[0] != text:  # it may be one that is being written
                self.seen[trial, newest] = text, time.monotonic()
            elif alive and self._create(trial, newest + 1):
                files.warn(f'{self._path(trial, newest)} {GARBLED}, and is left alone.')
        if alive:
            files.replace(self._path(trial, self.own[trial]), self._text())


class CpuWatchdog:
    """Tells whether a process still works by its CPU time, that of its heartbeat not counted.

    Training, compiling, validating and reading use some, however slow they are; a deadlock uses none.
    """

    def __init__(self):
        self.last = None  # (time, CPU seconds) when the process was last seen working

    def alive(self, now, cpu_seconds):
        """Returns whether more than LEAST of a core was used in the last HUNG seconds. cpu_seconds: total until now."""
        if self.last is None or cpu_seconds - self.last[1] > LEAST * HUNG:
            self.last = now, cpu_seconds
        return now - self.last[0] < HUNG


def _leave(trial):
    """Exits at once: another worker took the trial over, and two must not write to one directory."""
    sys.stdout.flush()
    os.write(2, f'lm: this worker sent no heartbeat or hung, and another took over trial {trial}; '
                'start a worker again to continue.\n'.encode())
    os._exit(heartbeat.LOST)


def host():
    """Returns an identity of this machine, its current boot and its process namespace."""
    boot = Path('/proc/sys/kernel/random/boot_id')
    space = os.readlink('/proc/self/ns/pid') if Path('/proc/self/ns/pid').exists() else ''
    return ' '.join([socket.gethostname(), boot.read_text().strip() if boot.exists() else '', space])


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
