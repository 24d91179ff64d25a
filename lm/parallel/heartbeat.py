"""Heartbeats: each process publishes a counter through the coordinator, and exits when a peer's stops.

The coordinator is the key-value store of jax.distributed, served by process 0.
"""
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

LOST = 76  # exit code of a process that ends because a peer was lost: EX_PROTOCOL, the other side failed
PERIOD, QUIET, DEAD = 2.0, 10.0, 30.0  # seconds between beats, of silence before a warning, and before the run ends
FALLBACK = 100  # seconds of jax's own heartbeat timeout, which cannot name a host; it acts from half of them on
PREFIX = 'lm/beat'  # of the keys in the coordinator's store


class Heartbeat:
    """Publishes the beat of process `index` and watches its peers; names: host names, address: the coordinator's."""

    def __init__(self, client, index, names, address):
        self.client, self.index, self.names = client, index, names
        self.beat, self.peers = {'count': 0}, {}  # own beat; {index: (last beat, when it came)}
        self.silent, self.slow = set(), set()  # peers that were warned of
        self.ended, self.failing, self.coordinator_seen = threading.Event(), threading.Event(), time.monotonic()
        self.handler = on_coordinator_loss(names[0], address)
        self.threads = [threading.Thread(target=work, name='heartbeat', daemon=True)
                        for work in (self._exchange, self._check_coordinator)]
        for thread in self.threads:
            thread.start()

    def compare(self, own, step):
        """Returns {name: number}: the range of the hosts' own seconds a step; warns of a straggler, once.

        `own` is what a step takes this host beside waiting for devices, `step` all that a step takes. Those of the
        peers are as of their last beats.
        """
        self.beat = {**self.beat, 'own': own}
        seconds = {i: beat['own'] for i, (beat, _) in sorted(self.peers.items()) if 'own' in beat}
        if len(seconds) < 2:
            return {}
        late = straggler(seconds, step)
        if late is not None and late not in self.slow:
            self.slow.add(late)
            self.warn(f'host {late} ({self.names[late]}) is slow: it takes {seconds[late]:.2g} s of its own of a step '
                      f'of {step:.2g} s, and the fastest host {min(seconds.values()):.2g} s; check its disk and load.')
        return {'host_seconds_min': min(seconds.values()), 'host_seconds_max': max(seconds.values())}

    def warn(self, line):
        """Prints a line on standard error, on process 0 alone."""
        if self.index == 0:
            print(f'lm: {line}', file=sys.stderr, flush=True)

    def wait_for_peers(self, known):
        """Returns once every peer has published another beat, within seconds; ends this process where one is lost.

        The loss of a peer shows in many ways: as an error of a collective, of a barrier, of a late save. An error that
        is not `known`, a config.Error, may also follow from one that a peer reports, which then ends this process.
        """
        if known:
            self.failing.set()
        began, before = time.monotonic(), {}
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            before = self._read()  # read now: self.peers is older by up to a period
        others = set(range(len(self.names))) - {self.index}
        while time.monotonic() - began < DEAD + 3 * PERIOD:
            now = {i: beat for i, (beat, _) in self.peers.items()}
            if all(i in before and i in now and ('failed' in now[i] or now[i]['count'] > before[i]['count'])
                   for i in others):
                return
            time.sleep(PERIOD / 10)

    def stop(self):
        """Ends the heartbeat."""
        self.ended.set()
        self.threads[0].join()

    def publish(self, **values):
        """Publishes a beat now, with these values in it from here on."""
        self.beat = {**self.beat, **values, 'count': self.beat['count'] + 1}
        self.client.key_value_set(f'{PREFIX}/{self.index}', json.dumps(self.beat), allow_overwrite=True)

    def _exchange(self):
        while not self.ended.wait(PERIOD):
            try:
                self.publish()
                beats = self._read()
            except jax.errors.JaxRuntimeError:
                continue  # the coordinator is gone or busy; if it is gone, jax aborts this process within seconds
            self.coordinator_seen = time.monotonic()
            self._check_peers(beats, self.coordinator_seen)

    def _check_coordinator(self):
        while not self.ended.wait(PERIOD):
            if self.index and time.monotonic() - self.coordinator_seen > DEAD:
                self._exit_lost(f'host 0 ({self.names[0]}) is lost: it did not answer for {DEAD:.0f} s')

    def _read(self):
        return {int(key.split('/')[-1]): json.loads(text) for key, text in self.client.key_value_dir_get(PREFIX)}

    def _check_peers(self, beats, now):
        for i, beat in beats.items():
            if i not in self.peers or self.peers[i][0]['count'] != beat['count']:
                self.peers[i] = beat, now
            host, silence = f'host {i} ({self.names[i]})', now - self.peers[i][1]
            if i == self.index:
                continue
            if 'failed' in beat and not self.failing.is_set():
                self._exit_lost(f'{host} failed: {beat["failed"]}')
            if silence > DEAD:
                self._exit_lost(f'{host} is lost: no heartbeat for {silence:.0f} s')
            if silence > QUIET and i not in self.silent:
                self.warn(f'{host} has sent no heartbeat for {silence:.0f} s; after {DEAD:.0f} s the run stops.')
            self.silent = self.silent | {i} if silence > QUIET else self.silent - {i}

    def _exit_lost(self, fact):
        if not self.ended.is_set():
            exit_now(f'{fact}; this run stopped; to resume it, run the same command on all hosts.', LOST)


def straggler(seconds, step):
    """Returns the host whose own seconds are over half of a step and twice the median host's, or None; {host: s}."""
    late = max(seconds, key=seconds.get)
    others = sorted(value for i, value in seconds.items() if i != late)
    return late if seconds[late] > max(step / 2, 2 * others[len(others) // 2]) else None


def fail(heartbeat, fault):
    """Ends this process with the reason on standard error, published to its peers first.

    It exits without jax.distributed's shutdown barrier, which peers that wait in a collective cannot join.
    """
    known = isinstance(fault, config.Error)
    if heartbeat:
        heartbeat.wait_for_peers(known)
    if not known and not isinstance(fault, KeyboardInterrupt):
        traceback.print_exception(fault)
    reason = config.first_line(fault)
    if heartbeat:
        heartbeat.ended.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            heartbeat.publish(failed=reason)
        time.sleep(3 * PERIOD if heartbeat.index == 0 else 0)  # peers read it from process 0, while that lives
    if known:
        exit_now(reason, 2)
    exit_now(f'{type(fault).__name__}: {reason}', 130 if isinstance(fault, KeyboardInterrupt) else 1)


def exit_now(line, code):
    """Ends this process at once, without cleaning up, with a line on standard error."""
    sys.stdout.flush()
    os.write(2, f'lm: {line}\n'.encode())
    os._exit(code)


def on_coordinator_loss(name, address):
    """Names the host of process 0 when jax aborts this process because that host is gone; see `at_abort`."""
    host, _, port = address.rpartition(':')

    def stop(number):
        try:
            socket.create_connection((host.strip('[]'), int(port)), 2).close()
        except OSError:
            exit_now(f'host 0 ({name}) is lost; this run stopped; to resume it, run the same command on all hosts.',
                     LOST)
        exit_now('jax ended this process, for the reason above.', 128 + number)
    return at_abort(stop)


def at_abort(handler):
    """Calls handler(signal number) when jax aborts this process, and returns the C callback, which must be kept.

    jax calls abort() in a C++ thread. A handler of Python's `signal` would wait for the main thread's next bytecode,
    which abort() does not; a C callback runs at once.
    """
    callback = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)
    ctypes.CDLL(None).signal(signal.SIGABRT, callback)
    return callback
