"""Claims on trials: files that are created exclusively, with a heartbeat while their owner lives and works.

The claim on a trial is the file claims/<trial>.<n> of the highest n. A worker that takes over from a dead owner creates
the file of n + 1, which only one worker can, so that no lock, no server and no synchronised clocks are needed.
"""
import contextlib
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path

from lm import config
from lm.config import files
from lm.parallel import heartbeat

PERIOD, DEAD = 2.0, 30.0  # seconds between heartbeats; seconds of an unchanged heartbeat until its owner counts as dead
HUNG, LEAST = 3600.0, 1e-3  # a worker that used less than LEAST of a core in HUNG seconds counts as hung


class Claims:
    """The claims of a sweep's directory as one worker sees them; a context in which its own have a heartbeat."""

    def __init__(self, directory):
        self.folder, self.me = Path(directory) / 'claims', {'host': host(), 'pid': os.getpid()}
        self.own, self.seen, self.count = {}, {}, 0  # {trial: number}, {(trial, number): (heartbeat, since)}, beats
        self.lock, self.ended = threading.Lock(), threading.Event()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
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
        newest = self.newest().get(trial, 0)
        if newest and self.lives(trial, newest):
            return False
        try:
            with open(self._path(trial, newest + 1), 'x') as file:
                file.write(self._text())
        except FileExistsError:
            return False
        except OSError as error:
            raise config.Error(f'cannot write to {self.folder}: {error.strerror}; free some space and '
                               'start again.') from error
        with self.lock:
            self.own[trial] = newest + 1
        return True

    def release(self, trial):
        """Releases a trial, which others may then take at once."""
        with self.lock:
            number = self.own.pop(trial)
            with contextlib.suppress(OSError):  # disk full: the heartbeat stops all the same
                files.replace(self._path(trial, number), json.dumps({'released': True}))

    def newest(self):
        """Returns {trial: number of its newest claim}."""
        numbers = {}
        for name in os.listdir(self.folder):
            trial, _, number = name.partition('.')
            if trial and number.isdigit():
                numbers[trial] = max(int(number), numbers.get(trial, 0))
        return numbers

    def lives(self, trial, number):
        """Returns whether a claim's owner may live: its heartbeat changes, or was not watched for DEAD seconds yet."""
        text = self._path(trial, number).read_text()
        try:
            claim = json.loads(text)
        except json.JSONDecodeError:  # read while it was written
            claim = {}
        if 'released' in claim or (claim.get('host') == self.me['host'] and not _runs(claim['pid'])):
            return False
        last, since = self.seen.get((trial, number), (None, 0))
        if last != text:
            since = time.monotonic()
            self.seen[trial, number] = text, since
        return time.monotonic() - since < DEAD

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
                for trial, number in self.own.items():
                    if self._path(trial, number + 1).exists():
                        _leave(trial)
                    if alive:
                        files.replace(self._path(trial, number), self._text())


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
