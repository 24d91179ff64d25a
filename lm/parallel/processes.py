"""Several processes as one run: initialising jax.distributed, collectives of JSON values, and stopping at one step.

In a run of one process every function here returns at once. No other file imports jax.distributed.
"""
import contextlib
import importlib.util
import itertools
import json
import os
import re
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
SLURM = {'SLURM_STEP_NODELIST': r'\S+', **dict.fromkeys(  # what jax reads
    ('SLURM_JOB_ID', 'SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_LOCALID'), '[0-9]{1,12}')}
WEEK = 7 * 24 * 3600 * 1000  # ms: a barrier has no timeout of its own, as the heartbeat ends it when a peer is lost
SKEW = 2.0  # seconds of clock skew that are worth a warning
_calls = itertools.count()  # numbers the barriers, which have the same order on every process
_heartbeats = []  # the one of this process, while it is one of several


def initialize_arguments(environ=os.environ):
    """Returns the arguments of jax.distributed.initialize by the environment, or None for a process alone.

    They come from LM_COORDINATOR=host:port, LM_PROCESSES and LM_PROCESS; else from jax's own detection, in a Slurm step
    of several tasks or on a Cloud TPU slice of several workers.
    """
    if any(name in environ for name in EXPLICIT):
        return _explicit(environ)
    if _number(environ, 'SLURM_STEP_NUM_TASKS') > 1:
        for name, form in SLURM.items():
            if not re.fullmatch(form, environ.get(name, '')):
                raise config.Error(f'{name}={environ.get(name, "")} is not what srun sets beside SLURM_STEP_NUM_TASKS='
                                   f'{environ["SLURM_STEP_NUM_TASKS"]}; start by srun, or unset SLURM_STEP_NUM_TASKS.')
        return {'cluster_detection_method': 'slurm', **_slurm_devices(environ)}
    return {} if _tpu_workers(environ) > 1 else None


def _number(environ, name):
    """Returns the positive number that the variable `name` begins with, as 2 of '2(x3),1'; 1 where it is not set."""
    text = environ.get(name) or '1'
    digits = re.match(r'[0-9]{1,9}(?![^(,])', text)
    if not digits or int(digits[0]) < 1:
        raise config.Error(f'{name}={text} does not begin with a number of 1 or more; set it right, or unset it.')
    return int(digits[0])


def _explicit(environ):
    missing = [name for name in EXPLICIT if not environ.get(name)]
    if missing:
        raise config.Error(f'{missing[0]} is not set beside {next(n for n in EXPLICIT if environ.get(n))}; '
                           'set LM_COORDINATOR=host:port LM_PROCESSES=n LM_PROCESS=i, or none of them.')
    address, count, index = (environ[name] for name in EXPLICIT)
    if not (re.fullmatch('[0-9]{1,9}', count) and re.fullmatch('[0-9]{1,9}', index) and int(index) < int(count)):
        raise config.Error(f'LM_PROCESS={index} is not one of LM_PROCESSES={count}; number them from 0 '
                           'to LM_PROCESSES - 1.')
    host, _, port = address.rpartition(':')
    if not (host and re.fullmatch('[0-9]{1,5}', port) and 0 < int(port) < 2 ** 16):
        raise config.Error(f'LM_COORDINATOR={address} is not host:port; name the host of process 0 and a free port, '
                           'e.g. LM_COORDINATOR=node-0:1234.')
    if int(count) == 1:
        return None
    return {'coordinator_address': address, 'num_processes': int(count), 'process_id': int(index),
            'cluster_detection_method': 'deactivate'}


def _slurm_devices(environ):
    """Returns {'local_device_ids': all visible GPUs} where a task is alone on its node or sees fewer GPUs than tasks.

    jax by itself gives a task the GPU of its rank on the node: that would leave seven of a task's eight idle, and under
    --gpus-per-task=1, where a task sees one GPU, name one that is not there.
    """
    visible = [name for name in environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
    tasks = _number(environ, 'SLURM_STEP_TASKS_PER_NODE')
    return {'local_device_ids': list(range(len(visible)))} if visible and (tasks == 1 or len(visible) < tasks) else {}


def _tpu_workers(environ):
    """Returns the number of hosts of this machine's Cloud TPU slice, by environment or metadata; 1 without a TPU."""
    if environ.get('JAX_PLATFORMS', 'tpu').split(',')[0] != 'tpu' or not importlib.util.find_spec('libtpu'):
        return 1
    hosts = environ.get('TPU_PROCESS_ADDRESSES') or environ.get('TPU_WORKER_HOSTNAMES')
    if not hosts and not environ.get('TPU_SKIP_MDS_QUERY') and (glob('/dev/accel*') or glob('/dev/vfio/[0-9]*')):
        hosts = _metadata(environ, 'worker-network-endpoints')
    return len((hosts or '').split(',')) * _number(environ, 'MEGASCALE_NUM_SLICES')


def _metadata(environ, name):
    """Returns an attribute of this machine from Google's metadata server, None where there is no such server."""
    server = environ.get('GCE_METADATA_IP', 'metadata.google.internal')
    request = urllib.request.Request(f'http://{server}/computeMetadata/v1/instance/attributes/{name}',
                                     headers={'Metadata-Flavor': 'Google'})
    with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as reply:
        return reply.read().decode()


@contextlib.contextmanager
def joined(environ=os.environ):
    """Makes this process one of several within a block, where the environment says so.

    The block must begin before anything touches a device. Only process 0 writes to standard output. A process that
    fails in the block publishes why and ends; one that loses a peer ends with exit code heartbeat.LOST.
    """
    arguments = initialize_arguments(environ)
    if arguments is None:
        yield
        return
    beat = None
    try:
        beat = _start(arguments)
        _heartbeats.append(beat)
        yield
    except BaseException as fault:
        if not isinstance(fault, SystemExit):
            heartbeat.fail(beat, fault)
        code = fault.code
    else:
        code = 0
    gather(None)
    _heartbeats.remove(beat)
    beat.stop()
    if code:
        raise SystemExit(code)


def _start(arguments):
    """Returns the running Heartbeat of this process once all processes have started; warns of clock skew."""
    address = arguments.get('coordinator_address', '')
    if arguments.get('process_id') == 0:
        check_port(address)
    name = f'process {arguments.get("process_id", "")} on {socket.gethostname()}'.replace('  ', ' ')
    with startup_messages(name, address):
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=heartbeat.FALLBACK,
                                   shutdown_timeout_seconds=60)
        if _state().process_id:
            sys.stdout = open(os.devnull, 'w')
        names = gather(socket.gethostname())
        beat = heartbeat.Heartbeat(_state().client, _state().process_id, names, _state().coordinator_address)
    for line in clock_warnings(names, gather(time.time())):
        beat.warn(line)
    return beat


@contextlib.contextmanager
def startup_messages(name, address):
    """Prints that a process waits for the others in a block, after a while, and why it ends where jax gives up."""
    alone = (f'{name} found no others{" at " if address else ""}{address}; start all processes within 5 minutes, with '
             'one LM_COORDINATOR that they can reach.')
    timer = threading.Timer(heartbeat.QUIET,
                            lambda: print(f'lm: {waiting_message(name, address)}', file=sys.stderr, flush=True))
    callback = heartbeat.at_abort(lambda number: heartbeat.exit_now(alone, 2))  # jax aborts after its own timeout
    timer.start()
    try:
        yield callback
    except RuntimeError as error:
        raise config.Error(alone) from error
    finally:
        timer.cancel()


def check_port(address):
    """Raises config.Error where process 0 cannot listen on the port of host:port."""
    host, _, port = address.rpartition(':')
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('', int(port)))
        except OSError as error:
            raise config.Error(f'process 0 cannot listen on port {port} of {socket.gethostname()} ({error.strerror}); '
                               f'try LM_COORDINATOR={host}:{int(port) + 1} on all hosts.') from error


def waiting_message(name, address):
    """Returns the line for a process that still waits for the others; address is the coordinator's or ''."""
    host, _, port = address.rpartition(':')
    unknown = ''
    try:
        socket.getaddrinfo(host.strip('[]') or 'localhost', port)
    except OSError:
        unknown = ', a host name that does not resolve here'
    return f'{name} waits for the others{" at " if address else ""}{address}{unknown}, for 5 minutes at most.'


def clock_warnings(names, times):
    """Returns a line for each host whose clock is far from the median; `times` [s] were read after one barrier."""
    median = sorted(times)[len(times) // 2]
    return [f'the clock of host {i} ({name}) is {abs(now - median):.1f} s {"ahead" if now > median else "behind"}; '
            'set it by NTP.' for i, (name, now) in enumerate(zip(names, times)) if abs(now - median) > SKEW]


def _state():
    return distributed.global_state


def first():
    """Returns whether this is the primary process, number 0, which writes the record and the console for all."""
    return _state().process_id == 0


def gather(value):
    """Returns the JSON-able values of all processes, by index: an all-gather and a barrier; [value] if alone."""
    client = _state().client
    if client is None:
        return [value]
    barrier = f'lm/gather/{next(_calls)}'
    client.key_value_set(f'{barrier}/{_state().process_id:06}', json.dumps(value))
    client.wait_at_barrier(barrier, WEEK)
    return [json.loads(text) for _, text in sorted(client.key_value_dir_get(barrier))]


def decide(function):
    """Returns on all processes the JSON-able value of function() on process 0, where alone it runs: a broadcast.

    A config.Error of the function is raised on all.
    """
    if _state().client is None:
        return function()
    outcome = None
    if first():
        try:
            outcome = {'value': function()}
        except config.Error as error:
            outcome = {'error': str(error)}
    outcome = gather(outcome)[0]
    if 'error' in outcome:
        raise config.Error(outcome['error'])
    return outcome['value']


def agree(values):
    """Raises config.Error with the first difference unless {what: text} is equal on all hosts."""
    first_host, *others = gather(values)
    for i, other in enumerate(others, 1):
        for what in sorted({*other, *first_host}):
            one, another = (host.get(what, 'absent') for host in (first_host, other))
            if one != another:
                raise config.Error(f'{what} is {one} on host 0 and {another} on host {i}; '
                                   'start the same command with the same code and data on all hosts.')


def compare(own, step):
    """Returns {name: number}: the range of the hosts' own seconds a step, see Heartbeat.compare; {} if alone."""
    return next((beat.compare(own, step) for beat in _heartbeats), {})


class Stop:
    """Whether a stop was requested by SIGTERM or SIGINT, at a step that all processes agree on.

    jax's preemption service sees SIGTERM on any of them, and finds the first step that none has passed.
    """

    def __init__(self):
        self.asked, self.handlers = False, {}

    def install(self):
        """Makes SIGTERM and the first SIGINT request a stop; a second SIGINT interrupts at once."""
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

    def restore(self):
        """Restores the signal handlers from before `install`."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

