"""Several processes as one run: how they find each other, what they agree on, and what becomes of all when one fails.

A process that is alone pays nothing: each function here is then its own answer. Only this file knows jax.distributed.
"""
import contextlib
import importlib.util
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from glob import glob

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from lm import config
from lm.parallel import heartbeat

EXPLICIT = ('LM_COORDINATOR', 'LM_PROCESSES', 'LM_PROCESS')
WEEK = 7 * 24 * 3600 * 1000  # ms: how long a host waits for the others while none of them is known to be lost
SKEW = 2.0  # seconds between two hosts' clocks that are worth a warning
_calls = itertools.count()
_guards = []


def settings(environ=os.environ):
    """Returns the arguments of jax.distributed.initialize that the environment asks for, or None for a process alone.

    LM_COORDINATOR=host:port, LM_PROCESSES and LM_PROCESS say it outright; else Slurm's task of several, or a Cloud TPU
    slice of several workers, by jax's own detection.
    """
    if any(name in environ for name in EXPLICIT):
        return _explicit(environ)
    if int(environ.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
        return {'cluster_detection_method': 'slurm', **_slurm_devices(environ)}
    return {} if _tpu_workers(environ) > 1 else None


def _explicit(environ):
    lacking = [name for name in EXPLICIT if not environ.get(name)]
    if lacking:
        raise config.Error(f'{lacking[0]} is not set beside {next(n for n in EXPLICIT if environ.get(n))}; '
                           'set LM_COORDINATOR=host:port LM_PROCESSES=n LM_PROCESS=i, or none of them.')
    address, count, index = (environ[name] for name in EXPLICIT)
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise config.Error(f'LM_PROCESS={index} is not one of LM_PROCESSES={count}; number them from 0 '
                           'to LM_PROCESSES - 1.')
    host, _, port = address.rpartition(':')
    if not (host and port.isdigit()):
        raise config.Error(f'LM_COORDINATOR={address} is not host:port; name the host of process 0 and a free port, '
                           'e.g. LM_COORDINATOR=node-0:1234.')
    if int(count) == 1:
        return None
    return {'coordinator_address': address, 'num_processes': int(count), 'process_id': int(index),
            'cluster_detection_method': 'deactivate'}


def _slurm_devices(environ):
    """Returns which GPUs a task takes: all it can see if it sees fewer than there are tasks on its node, or is alone.

    jax itself takes the one numbered as the task is on its node: of a task with eight that would leave seven idle, and
    under --gpus-per-task=1, where every task sees one, there would be none of that number.
    """
    seen = [name for name in environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
    tasks = int(environ.get('SLURM_STEP_TASKS_PER_NODE', '1').split('(')[0].split(',')[0])
    return {'local_device_ids': list(range(len(seen)))} if seen and (tasks == 1 or len(seen) < tasks) else {}


def _tpu_workers(environ):
    """Returns how many hosts the Cloud TPU that this machine is part of has, by its metadata; 1 where there is none."""
    if environ.get('JAX_PLATFORMS', 'tpu').split(',')[0] != 'tpu' or not importlib.util.find_spec('libtpu'):
        return 1
    named = environ.get('TPU_PROCESS_ADDRESSES') or environ.get('TPU_WORKER_HOSTNAMES')
    if not named and not environ.get('TPU_SKIP_MDS_QUERY') and (glob('/dev/accel*') or glob('/dev/vfio/[0-9]*')):
        named = _metadata(environ, 'worker-network-endpoints')
    return len((named or '').split(',')) * int(environ.get('MEGASCALE_NUM_SLICES') or 1)


def _metadata(environ, name):
    place = environ.get('GCE_METADATA_IP', 'metadata.google.internal')
    request = urllib.request.Request(f'http://{place}/computeMetadata/v1/instance/attributes/{name}',
                                     headers={'Metadata-Flavor': 'Google'})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as reply:
        return reply.read().decode()


@contextlib.contextmanager
def joined(environ=os.environ):
    """Makes this process one of several for the time of a block, where the environment says so.

    It must begin before anything touches a device. Only process 0 writes to standard output. A process that fails
    within the block tells the others, says why and ends; a process that loses another ends with exit code watch.LOST.
    """
    given = settings(environ)
    if given is None:
        yield
        return
    guard = None
    try:
        guard = _start(given)
        _guards.append(guard)
        yield
    except BaseException as fault:
        if not isinstance(fault, SystemExit):
            heartbeat.fail(guard, fault)
        code = fault.code
    else:
        code = 0
    gather(None)
    _guards.remove(guard)
    guard.stop()
    if code:
        raise SystemExit(code)


def _start(given):
    """Returns the running watch.Guard of this process, once all are here; warns where their clocks disagree."""
    address = given.get('coordinator_address', '')
    if given.get('process_id') == 0:
        check_port(address)
    with _waiting(f'process {given.get("process_id", "")} on {socket.gethostname()}'.replace('  ', ' '), address):
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=heartbeat.FALLBACK, shutdown_timeout_seconds=60)
        if _state().process_id:
            sys.stdout = open(os.devnull, 'w')
        names = gather(socket.gethostname())
        guard = heartbeat.Guard(_state().client, _state().process_id, names, _state().coordinator_address)
    for line in skewed(names, gather(time.time())):
        guard.say(line)
    return guard


@contextlib.contextmanager
def _waiting(name, address):
    """Says after a while for whom a process waits in a block, and why it ends where jax aborts it for want of them."""
    alone = (f'{name} found no others{" at " if address else ""}{address}; start all processes within 5 minutes, with '
             'one LM_COORDINATOR that they can reach.')
    timer = threading.Timer(heartbeat.QUIET,
                            lambda: print(f'lm: {waiting(name, address)}', file=sys.stderr, flush=True))
    handler = heartbeat.at_abort(lambda number: heartbeat.end(alone, 2))
    timer.start()
    try:
        yield handler
    except RuntimeError as error:
        raise config.Error(alone) from error
    finally:
        timer.cancel()


def check_port(address):
    """Raises config.Error where process 0 cannot have the port of host:port."""
    host, _, port = address.rpartition(':')
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', int(port)))
        except OSError as error:
            raise config.Error(f'process 0 cannot have port {port} of {socket.gethostname()} ({error.strerror}); try '
                               f'LM_COORDINATOR={host}:{int(port) + 1} on all.') from error


def waiting(name, address):
    """Returns the line for a process that still waits for the others; address is the coordinator's or ''."""
    host, _, port = address.rpartition(':')
    known = ''
    try:
        socket.getaddrinfo(host.strip('[]') or 'localhost', port)
    except OSError:
        known = ', which names no host known here'
    return f'{name} waits for the others{" at " if address else ""}{address}{known}, for 5 minutes at most.'


def skewed(names, times):
    """Returns a line for each host whose clock is far from the middle one's; `times` were read at one moment."""
    middle = sorted(times)[len(times) // 2]
    return [f'the clock of host {i} ({name}) is {abs(now - middle):.1f} s {"ahead" if now > middle else "behind"}; '
            'set it by NTP.' for i, (name, now) in enumerate(zip(names, times)) if abs(now - middle) > SKEW]


def _state():
    return distributed.global_state


def first():
    """Returns whether this process is the one that writes for all."""
    return _state().process_id == 0


def gather(value):
    """Returns the JSON-able values that the processes give, in their order, once all have called; [value] if alone."""
    client = _state().client
    if client is None:
        return [value]
    room = f'lm/gather/{next(_calls)}'
    client.key_value_set(f'{room}/{_state().process_id:06}', json.dumps(value))
    client.wait_at_barrier(room, WEEK)
    return [json.loads(found) for _, found in sorted(client.key_value_dir_get(room))]


def decide(function):
    """Returns on all processes what function() gives on process 0, JSON-able; a config.Error there is raised on all."""
    if _state().client is None:
        return function()
    answer = None
    if first():
        try:
            answer = {'value': function()}
        except config.Error as error:
            answer = {'error': str(error)}
    decided = gather(answer)[0]
    if 'error' in decided:
        raise config.Error(decided['error'])
    return decided['value']


def agree(values):
    """Raises config.Error, naming the first host that differs, unless {what: text} is the same on all hosts."""
    told = gather(values)
    for i, other in enumerate(told):
        for what in sorted({*other, *told[0]}):
            one, another = (found.get(what, 'absent') for found in (told[0], other))
            if one != another:
                raise config.Error(f'{what} is {one} on host 0 and {another} on host {i}; '
                                   'start the same command with the same code and data on all.')


def compare(own, step):
    """Returns {name: number} of how the hosts' own seconds a step spread, on process 0; nothing where one is alone."""
    return next((guard.compare(own, step) for guard in _guards), {})


class Stop:
    """Whether the run was asked to stop, at a step that all processes agree on.

    jax's preemption service hears SIGTERM on any of them, and finds the first step that none has passed.
    """

    def __init__(self):
        self.asked, self.handlers = False, {}

    def heed(self):
        """Makes SIGTERM and the first SIGINT ask for a stop; a second SIGINT interrupts at once."""
        several = _state().client is not None

        def ask(number, frame):
            self.asked = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if several:
                signal.raise_signal(signal.SIGTERM)
        numbers = (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT)
        self.handlers = {number: signal.signal(number, ask) for number in numbers}

    def reached(self, step):
        """Returns whether all processes stop after `step`; to be called at every step."""
        return self.asked if _state().client is None else multihost_utils.reached_preemption_sync_point(step)

    def forget(self):
        """Leaves signals as they were."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
