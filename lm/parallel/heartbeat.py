"""A thread in each of several processes that beats, hears the others' beats, and ends its process when one is lost."""
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback

import jax

from lm import config

LOST = 76  # exit code of a process that ended because another was lost: EX_PROTOCOL, the other side failed
PERIOD, QUIET, DEAD = 2.0, 10.0, 30.0  # seconds between beats, of silence worth a warning, and of that ends the run
FALLBACK = 100  # seconds of jax's own heartbeat, which acts after half of them or later: it has no names to give
ROOM = 'lm/beat'


class Guard:
    """Beats for process `index` and watches the others; `names` are their hosts', `address` is the coordinator's."""

    def __init__(self, client, index, names, address):
        self.client, self.index, self.names = client, index, names
        self.beat, self.heard, self.quiet, self.slow = {'count': 0}, {}, set(), set()
        self.ended, self.failing, self.reached = threading.Event(), threading.Event(), time.monotonic()
        self.keep = name_the_lost_coordinator(names[0], address)
        self.threads = [threading.Thread(target=work, name='watch', daemon=True) for work in (self._watch, self._judge)]
        for thread in self.threads:
            thread.start()

    def note(self, **values):
        """Adds values to what the beat tells the others."""
        self.beat = {**self.beat, **values}

    def compare(self, own, step):
        """Returns {name: number} of how the hosts' own seconds a step spread, by their last beats; names a slow one.

        `own` is this host's: what a step takes it beside waiting for the devices. `step` is all that a step takes.
        """
        self.note(own=own)
        told = {i: beat['own'] for i, (beat, _) in sorted(self.heard.items()) if 'own' in beat}
        if len(told) < 2:
            return {}
        late = slowest(told, step)
        if late is not None and late not in self.slow:
            self.slow.add(late)
            self.say(f'host {late} ({self.names[late]}) is slow: it takes {told[late]:.2g} s of its own a step of '
                     f'{step:.2g} s, and the fastest {min(told.values()):.2g} s; look at its disk and load.')
        return {'host_seconds_min': min(told.values()), 'host_seconds_max': max(told.values())}

    def say(self, line):
        """Prints a line for the operator, on process 0 alone."""
        if self.index == 0:
            print(f'lm: {line}', file=sys.stderr, flush=True)

    def clear(self, known):
        """Returns once every other process has beaten anew, within seconds; where one is lost, ends this one.

        What fails in a process because another is gone says so in many ways: a collective, a barrier, a late save.
        A fault that is not `known` may also be the echo of one that another process tells, which then ends this one.
        """
        if known:
            self.failing.set()
        began, told = time.monotonic(), {}
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            told = self._read()  # now: what is heard is older by up to a beat
        others = set(range(len(self.names))) - {self.index}
        while time.monotonic() - began < DEAD + 3 * PERIOD:
            heard = {i: beat for i, (beat, _) in self.heard.items()}
            if all(i in told and i in heard and ('failed' in heard[i] or heard[i]['count'] > told[i]['count'])
                   for i in others):
                return
            time.sleep(PERIOD / 10)

    def stop(self):
        """Ends the watch."""
        self.ended.set()
        self.threads[0].join()

    def _watch(self):
        while not self.ended.wait(PERIOD):
            try:
                self.tell()
                beats = self._read()
            except jax.errors.JaxRuntimeError:
                continue  # the coordinator is gone or busy; if it is gone, jax aborts this process within seconds
            self.reached = time.monotonic()
            self._hear(beats, self.reached)

    def _judge(self):
        """Ends the process when process 0, through which all speak, has not answered for too long."""
        while not self.ended.wait(PERIOD):
            if self.index and time.monotonic() - self.reached > DEAD:
                self._leave(f'host 0 ({self.names[0]}) is lost: it did not answer for {DEAD:.0f} s')

    def tell(self):
        """Sends a beat now."""
        self.beat = {**self.beat, 'count': self.beat['count'] + 1}
        self.client.key_value_set(f'{ROOM}/{self.index}', json.dumps(self.beat), allow_overwrite=True)

    def _read(self):
        return {int(key.split('/')[-1]): json.loads(text) for key, text in self.client.key_value_dir_get(ROOM)}

    def _hear(self, beats, now):
        for i, beat in beats.items():
            if i not in self.heard or self.heard[i][0]['count'] != beat['count']:
                self.heard[i] = beat, now
            name, silence = f'host {i} ({self.names[i]})', now - self.heard[i][1]
            if i == self.index:
                continue
            if 'failed' in beat and not self.failing.is_set():
                self._leave(f'{name} failed: {beat["failed"]}')
            if silence > DEAD:
                self._leave(f'{name} is lost: nothing was heard from it for {silence:.0f} s')
            if silence > QUIET and i not in self.quiet:
                self.say(f'{name} is silent for {silence:.0f} s; after {DEAD:.0f} s the run stops.')
            self.quiet = self.quiet | {i} if silence > QUIET else self.quiet - {i}

    def _leave(self, fact):
        if not self.ended.is_set():
            end(f'{fact}; this run stopped, and the same command on all hosts resumes it.', LOST)


def slowest(own, step):
    """Returns the host whose own seconds are over half of a step and twice the middle host's, or None; own: {i: s}."""
    late = max(own, key=own.get)
    others = sorted(seconds for i, seconds in own.items() if i != late)
    return late if own[late] > max(step / 2, 2 * others[len(others) // 2]) else None


def fail(guard, fault):
    """Says why this process failed, tells the others, and ends it without the goodbye that they could not answer."""
    known = isinstance(fault, config.Error)
    if guard:
        guard.clear(known)
    if not known and not isinstance(fault, KeyboardInterrupt):
        traceback.print_exception(fault)
    reason = config.first_line(fault)
    if guard:
        guard.ended.set()
        guard.note(failed=reason)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            guard.tell()
        time.sleep(3 * PERIOD if guard.index == 0 else 0)  # the others hear it from process 0, while that lives
    end(reason if known else f'{type(fault).__name__}: {reason}', 2 if known else 130
         if isinstance(fault, KeyboardInterrupt) else 1)


def end(line, code):
    """Ends this process at once, with a line on standard error."""
    sys.stdout.flush()
    os.write(2, f'lm: {line}\n'.encode())
    os._exit(code)


def name_the_lost_coordinator(name, address):
    """Makes jax's abort, which follows when process 0 dies, end with a line that names its host; see at_abort."""
    host, _, port = address.rpartition(':')

    def stop(number):
        try:
            socket.create_connection((host.strip('[]'), int(port)), 2).close()
        except OSError:
            end(f'host 0 ({name}) is lost; this run stopped, and the same command on all hosts resumes it.', LOST)
        end('jax ended this process, for the reason above.', 128 + number)
    return at_abort(stop)


def at_abort(answer):
    """Calls answer(number) when jax aborts this process: it gives Python no other way to hear of what it found.

    Returns the handler, which must be kept.
    """
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(answer)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    return handler
