"""Who trains what: claims on trials by files that are created exclusively, and beat while their owner lives and works.

The claim on a trial is the file claims/<trial>.<n> of the highest n. Who takes over a claim without a living owner
creates the file of n + 1, which only one can, so that nothing needs a lock, a server or clocks that agree.
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

PERIOD, DEAD = 2.0, 30.0  # seconds between beats, and of one beat seen unchanged after which its owner counts as dead
HUNG, LEAST = 3600.0, 1e-3  # seconds after which a worker that took less than this share of a core counts as hung


class Claims:
    """The claims of a sweep's directory, as one worker sees them; a context in which its own beat."""

    def __init__(self, directory):
        self.folder, self.me = Path(directory) / 'claims', {'host': host(), 'pid': os.getpid()}
        self.held, self.seen, self.count = {}, {}, 0
        self.lock, self.ended = threading.Lock(), threading.Event()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise config.Error(f'cannot write to {directory}: {error.strerror}; give another --workdir.') from error

    def __enter__(self):
        self.thread = threading.Thread(target=self._beat, name='claims', daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *fault):
        self.ended.set()
        self.thread.join()
        for trial in list(self.held):
            self.release(trial)

    def take(self, trial):
        """Returns whether the trial is now this worker's: nobody had it, or its owner let go of it or is dead."""
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
            self.held[trial] = newest + 1
        return True

    def release(self, trial):
        """Lets go of a trial, so that others may take it at once."""
        with self.lock:
            number = self.held.pop(trial)
            with contextlib.suppress(OSError):  # no room to say so: others hear no beat any more
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
        """Returns whether a claim's owner lives, as far as can be told: it beats, or has not been watched for long."""
        text = self._path(trial, number).read_text()
        try:
            beat = json.loads(text)
        except json.JSONDecodeError:
            beat = {}
        if 'released' in beat or (beat.get('host') == self.me['host'] and not _runs(beat['pid'])):
            return False
        known, since = self.seen.get((trial, number), (None, 0))
        if known != text:
            since = time.monotonic()
            self.seen[trial, number] = text, since
        return time.monotonic() - since < DEAD

    def _path(self, trial, number):
        return self.folder / f'{trial}.{number}'

    def _text(self):
        self.count += 1
        return json.dumps({**self.me, 'beat': self.count})

    def _beat(self):
        pulse = Pulse()
        while not self.ended.wait(PERIOD):
            pulse = pulse if self.held else Pulse()
            lives = pulse.felt(time.monotonic(), time.process_time() - time.thread_time())
            with self.lock, contextlib.suppress(OSError):
                for trial, number in self.held.items():
                    if self._path(trial, number + 1).exists():
                        _leave(trial)
                    if lives:
                        files.replace(self._path(trial, number), self._text())


class Pulse:
    """Whether a process still does something, by the processor's time that it takes beside its beat.

    Steps, compiling, validating and reading all take some, however slow they are; what waits for ever takes none.
    """

    def __init__(self):
        self.mark = None

    def felt(self, now, used):
        """Returns whether in the last HUNG seconds more than LEAST of a core was used, of which `used` is the total."""
        if self.mark is None or used - self.mark[1] > LEAST * HUNG:
            self.mark = now, used
        return now - self.mark[0] < HUNG


def _leave(trial):
    """Ends the process at once: another took its trial over, and two must not write into one folder."""
    sys.stdout.flush()
    os.write(2, f'lm: this worker was silent or hung and another took over trial {trial}; '
                'start a worker again to go on.\n'.encode())
    os._exit(heartbeat.LOST)


def host():
    """Returns what tells the processes of this machine, since it was started, from those of others."""
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
