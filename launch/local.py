#!/usr/bin/env python3
"""Runs a command as several processes on this machine, on its CPU or with its GPUs shared out among them.

    launch/local.py --processes 4 -- lm train experiments/quickstart.py

Each process gets LM_COORDINATOR, LM_PROCESSES and LM_PROCESS, and its share of the GPUs in CUDA_VISIBLE_DEVICES. Its
output goes to <logs>/<process>.log; that of process 0 is shown as well. When one fails, the others are stopped and
the end of its log is shown. Ctrl-C and SIGTERM are passed on to all.
"""

import interrupt  # isort: skip  # noqa: F401 - first, so that Ctrl-C is one line from here on
import contextlib
import itertools
import os
import queue
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import flags
import shell

FILES = 32  # open files of this program beside two for each process


def main(arguments):
    options, command = flags.parse(parser(), arguments)
    devices = gpus(os.environ)
    processes = options.processes or len(devices)
    check(options, processes)
    logs = shell.folder(options.logs, 'local')
    places = environments(processes, devices, f'127.0.0.1:{options.port or free_port()}')
    words = shell.wrapped(command)
    if options.dry_run:
        shell.result('\n'.join([f'mkdir -p {shell.shown([logs])}', *(
            f'{shell.shown(["env", *(f"{name}={value}" for name, value in place.items()), *words])} '
            f'>>{shell.shown([logs / f"{i}.log"])} 2>&1' for i, place in enumerate(places))]))
        return 0
    shell.make(logs)
    files = [open(logs / f'{i}.log', 'ab') for i in range(processes)]
    shell.say(f'{processes} processes, logs in {logs}')
    return Group(words, places, files, options.grace).wait()


def parser():
    made = flags.Parser(prog='local.py', description=__doc__, usage='local.py [options] -- command ...')
    made.add_argument('--processes', type=flags.count, metavar='N', help='how many; by default one for each GPU')
    made.add_argument('--logs', metavar='DIR', help='folder of the logs, to which they are added; by default a new one '
                      'under runs/local')
    made.add_argument('--port', type=flags.count, help='port of process 0 for the others; by default a free one')
    made.add_argument('--grace', type=flags.positive, default=45, metavar='SECONDS',
                      help='how long the others may take to stop when one fails (%(default)s)')
    made.add_argument('--dry-run', action='store_true', help='print the commands and run nothing')
    return made


def check(options, processes):
    """Raises a Fault for numbers that cannot be."""
    if not processes:
        raise shell.Fault('--processes is not given and this machine has no GPU to count; try --processes=2.')
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 2 * processes + FILES > limit:
        raise shell.Fault(f'--processes={processes:,} needs more open files than the {limit:,} that this shell allows; '
                          f'try --processes={max((limit - FILES) // 2, 1)}, or ulimit -n.')
    if options.port and options.port > 65535:
        raise shell.Fault(f'--port={options.port} is no port; try one from 1024 to 65535.')


def gpus(environ):
    """Returns the names of the GPUs a command may use: those of CUDA_VISIBLE_DEVICES, or all that nvidia-smi lists."""
    if environ.get('JAX_PLATFORMS') == 'cpu':
        return []
    if 'CUDA_VISIBLE_DEVICES' in environ:
        names = filter(None, environ['CUDA_VISIBLE_DEVICES'].split(','))
        return list(itertools.takewhile(lambda name: not name.startswith('-'), names))  # -1 ends them
    if not shutil.which('nvidia-smi'):
        return []
    code, out, _ = shell.ask(['nvidia-smi', '--query-gpu=index', '--format=csv,noheader'])
    return out.split() if code == 0 else []


def environments(processes, devices, coordinator):
    """Returns the variables of each process; raises a Fault if the GPUs cannot be shared out evenly."""
    if len(devices) % processes:
        fits = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise shell.Fault(f'--processes={processes} does not divide the {len(devices)} GPUs here; try '
                          f'--processes={max(fits)}, or JAX_PLATFORMS=cpu to run without them.')
    share = len(devices) // processes
    places = [{'LM_COORDINATOR': coordinator, 'LM_PROCESSES': str(processes), 'LM_PROCESS': str(i)}
              for i in range(processes)]
    if devices:
        for i, place in enumerate(places):
            place['CUDA_VISIBLE_DEVICES'] = ','.join(devices[i * share:(i + 1) * share])
    return places


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


class Group:
    """Processes that run one command; each is in a session of its own, so that signals reach it through us only."""

    def __init__(self, words, places, logs, grace):
        self.logs, self.grace, self.ended, self.signals, self.processes = logs, grace, queue.Queue(), 0, []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.forward)
        try:
            for place in places:
                self.processes.append(subprocess.Popen(
                    words, env={**os.environ, **place}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, start_new_session=True))
        except OSError:
            self.send(signal.SIGKILL)
            raise
        if self.signals:
            self.send(signal.SIGTERM)
        for i, process in enumerate(self.processes):
            threading.Thread(target=self.follow, args=(i, process), daemon=True).start()

    def follow(self, index, process):
        """Writes the output of a process to its log, shows that of process 0, and tells when it has ended."""
        with self.logs[index] as log:
            for line in process.stdout:
                shell.write(log, line, log.name)
                if index == 0:
                    shell.write(sys.stdout.buffer, b'[0] ' + line, 'standard output')
        self.ended.put((index, process.wait()))

    def forward(self, number, frame):
        """Passes a signal on to every process; the fourth kills them."""
        self.signals += 1
        self.send(number if self.signals < 4 else signal.SIGKILL)

    def send(self, number):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                if process.poll() is None:
                    (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)

    def wait(self):
        """Returns the exit code of the first process that failed, 75 if one was stopped and saved, or 0."""
        codes, failed, deadline = {}, None, None
        while len(codes) < len(self.processes):
            try:
                index, code = self.ended.get(timeout=0.2)
                codes[index] = code if code >= 0 else 128 - code
                if failed is None and codes[index] not in (0, shell.STOPPED):
                    failed = index
                    self.report(index, codes[index])
                if failed is not None and deadline is None:
                    self.send(signal.SIGTERM)
                    waited = codes[failed] == shell.LOST
                    deadline = time.monotonic() + (min(self.grace, 10) if waited else self.grace)
            except queue.Empty:
                if deadline is not None and time.monotonic() > deadline:
                    stuck = [str(i) for i in range(len(self.processes)) if i not in codes]
                    shell.say(f'killing process {", ".join(stuck)}, which did not stop')
                    self.send(signal.SIGKILL)
                    deadline = float('inf')
        return codes[failed] if failed is not None else max(codes.values())

    def report(self, index, code):
        log = self.logs[index].name
        running = sum(process.poll() is None for process in self.processes)
        shell.say(f'process {index} ended with code {code}; stopping {running} others. The end of {log}:')
        for line in shell.last_lines(log):
            shell.tell(f'[{index}] {line}')


if __name__ == '__main__':
    shell.run(main)
