#!/usr/bin/env python3
"""Runs a command on Cloud TPUs: creates the slice, copies the project, runs, fetches the results, deletes the slice.

    launch/tpu.py v5e-16 --spot -- lm train experiments/llama_1b.py --workdir=gs://bucket/run

The command runs on every worker; the output of worker 0 is shown. When the slice is preempted it is created anew and
the same line is run again, as when the command ends with code 75 (it was asked to stop, and has saved). Ctrl-C asks
the command to stop; a second one deletes the slice at once. If this program or its machine is lost, the slice stays
and goes on costing; the same line takes up the same run. Slices are named as Cloud TPU names them: v5p-16 and v4-16
count cores, v5e-16 and v6e-16 chips.
"""

import hashlib
import os
import re
import signal
import subprocess
import time

import gcloud
import shell
import slices

# What runs on the workers. ~/lm is the project, ~/lm.run the run: token, pid, log, code.
UNPACK = 'mkdir -p ~/lm && tar xzf ~/lm.tgz -C ~/lm'
INSTALL = 'cd ~/lm && LM_EXTRAS=tpu launch/install.sh'
START = r'''mkdir -p ~/lm.run && cd ~/lm.run
[ "$(cat token 2>/dev/null)" != {token} ] || exit 0
[ ! -f pid ] || [ -f code ] || ! kill -0 "$(cat pid)" 2>/dev/null || exit 0
rm -f code; echo {token} >token; cd ~/lm; export LM_EXTRAS=tpu
setsid bash -c {run} >~/lm.run/log 2>&1 </dev/null &
echo $! >~/lm.run/pid'''
RUN = 'trap : TERM; {command}; echo $? >~/lm.run/code'
FOLLOW = r'''cd ~/lm.run
tail -s 0.2 -n +{first} --pid="$(cat pid)" -f log | grep --line-buffered -n ''; echo "exit $(cat code)"'''
STOP = 'pkill -TERM -P "$(cat ~/lm.run/pid)"'
CHECK = r'''cd ~/lm.run; timeout 60 tail --pid="$(cat pid)" -f /dev/null; code=$(cat code 2>/dev/null || echo 137)
[ $code = 0 ] || { echo "$(hostname) ended with code $code; the end of its log:"; tail -n 30 log; }; exit $code'''


def main(arguments):
    options, command = shell.parse(parser(), arguments)
    kind = slices.find(options.slice)
    if not kind.generation.runtime:
        raise shell.Fault(f'{options.slice} cannot be had as a queued resource, only in GKE; try launch/gke.py '
                          f'{options.slice}.')
    check(options, command)
    job = Job(options, kind, command)
    shell.check_length(job.start(time.time_ns()), 'the command, quoted for the workers,')
    shell.say(slices.cost(kind, options.slices, options))
    if options.dry_run:
        for words in job.steps():
            print(words if isinstance(words, str) else shell.shown(words))
        return 0
    shell.need('gcloud', 'install it from https://cloud.google.com/sdk/docs/install and run gcloud auth login.')
    shell.need('git', 'install it; it names the files to copy.')
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return job.run()


def parser():
    made = shell.Parser(prog='tpu.py', description=__doc__, usage='tpu.py SLICE [options] -- command ...')
    made.add_argument('slice', help='e.g. v5e-16, v5p-128, v6e-256')
    made.add_argument('--slices', type=shell.count, default=1, metavar='N', help='slices joined by the slow network')
    tier = made.add_mutually_exclusive_group()
    tier.add_argument('--spot', action='store_true', help='capacity that may be taken away, for less')
    tier.add_argument('--reserved', action='store_true', help='capacity of a reservation')
    made.add_argument('--zone', help='by default one that has the slice')
    made.add_argument('--project', help="by default gcloud's own")
    made.add_argument('--name', help='name of the slice; by default made from the command')
    made.add_argument('--runtime', help='software of the machines; by default what the slice needs')
    made.add_argument('--gcloud', action='append', default=[], metavar='OPTION',
                      help='any other option of queued-resources create, e.g. --gcloud=--network=mine')
    made.add_argument('--fetch', action='append', metavar='PATH', help='what to copy back from worker 0 (runs)')
    made.add_argument('--hours', type=shell.positive, help='ask the command to stop after this long on the slice')
    made.add_argument('--price', type=shell.positive, help='dollars for an hour of a chip, for the cost stated')
    made.add_argument('--retries', type=shell.count, default=20, metavar='N',
                      help='how often to start again after a preemption or for want of capacity (%(default)s)')
    made.add_argument('--keep', action='store_true', help='do not delete the slice at the end: it goes on costing')
    made.add_argument('--poll', type=shell.positive, default=20, metavar='SECONDS',
                      help='how often to ask for its state (%(default)s)')
    made.add_argument('--dry-run', action='store_true', help='print the cost and the commands and run nothing')
    return made


def check(options, command):
    """Raises a Fault for a name that Google Cloud refuses, and warns of a run that preemption would lose."""
    if options.name and not re.fullmatch('[a-z]([-a-z0-9]{0,61}[a-z0-9])?', options.name):
        raise shell.Fault(f'--name={options.name} is not a name there: lower-case letters, digits and -, beginning '
                          'with a letter, at most 63; try --name=run-1.')
    if options.spot and not any('gs://' in word for word in command):
        shell.say('nothing in the command is kept in a bucket: what it saves is lost when the slice is preempted; '
                  'try --workdir=gs://bucket/run')


class Job:
    """One command on one request for slices, from its creation to its deletion."""

    def __init__(self, options, kind, command):
        self.options, self.kind = options, kind
        line = shell.shown(['launch/local.sh', *command])
        digest = hashlib.sha256(f'{options.slice} {options.slices} {line}'.encode()).hexdigest()[:6]
        self.queued = gcloud.Queued(options.name or f'lm-{options.slice}-{digest}',
                                    options.zone or kind.generation.zone, options.project)
        self.line, self.began, self.asked = line, None, False
        self.file = f'/tmp/{self.queued.name}-{os.getpid()}.tgz'

    def create(self):
        options = self.options
        extra = [f'--runtime-version={options.runtime or self.kind.generation.runtime}', *options.gcloud,
                 *(['--spot'] if options.spot else []), *(['--reserved'] if options.reserved else [])]
        return self.queued.create(self.kind, options.slices, extra)

    def pack(self):
        return shell.packing(f'czf {shell.shown([self.file])}')

    def start(self, token):
        limit = ''
        if self.options.hours:
            spent = time.monotonic() - self.began if self.began else 0
            limit = f'timeout --preserve-status --signal=TERM {max(int(self.options.hours * 3600 - spent), 1)} '
        return START.format(token=token, run=shell.shown([RUN.format(command=limit + self.line)]))

    def fetched(self):
        return [self.queued.fetch(f'lm/{path}', '.') for path in self.options.fetch or ['runs']]

    def steps(self):
        """Yields the commands in order, as if nothing went wrong."""
        queued = self.queued
        yield from (self.create(), queued.describe('state.state'), self.pack(), queued.send(self.file),
                    queued.on_all(UNPACK), queued.on_all(INSTALL), queued.on_all(self.start('1')),
                    queued.on_first(FOLLOW.format(first=1)), queued.on_all(CHECK), *self.fetched())
        if not self.options.keep:
            yield queued.delete()

    def run(self):
        """Returns the exit code of the command; starts again what was preempted, and deletes the slice at the end."""
        try:
            for attempt in range(self.options.retries + 1):
                try:
                    self.acquire()
                    return self.attempt()
                except gcloud.Gone as gone:
                    shell.say(f'{gone}; {self.options.retries - attempt} tries left')
                    self.delete()
            raise shell.Fault(f'no luck in {self.options.retries + 1} tries; try another --zone, or without --spot.')
        finally:
            if self.options.keep and self.asked:
                shell.say(f'{self.queued.name} is kept and goes on costing; to delete it: '
                          f'{shell.shown(self.queued.delete())}')
            elif self.asked:
                self.delete()

    def acquire(self):
        """Returns once the slices are there; creates the request unless a lost launcher has left it."""
        state, last = self.queued.state(), None
        self.asked = True
        if state in gcloud.LOST:
            self.delete()
            state = None
        if state is None:
            gcloud.do('create the slice', self.create())
        while (state := self.queued.state()) != 'ACTIVE':
            if state is None or state in gcloud.LOST:
                why = shell.ask(self.queued.describe('state.failedData.error.message'))[1].strip()
                raise self.refusal(state, why)
            if state != last:
                shell.say(f'{self.queued.name} is {state.lower().replace("_", " ")}')
                last = state
            time.sleep(self.options.poll)
        shell.say(f'{self.queued.name} is ready')
        self.began = self.began or time.monotonic()

    def refusal(self, state, why):
        """Returns a Fault for what would fail the same way again, and Gone otherwise."""
        remedy = gcloud.find_remedy(why)
        if remedy:
            return shell.Fault(f'Google Cloud refuses the slice: {why.rstrip(".")}: {remedy}')
        return gcloud.Gone(f'the request is {(state or "gone").lower()}{why and ": "}{why}')

    def delete(self):
        """Deletes the request and its slices, whatever signals come meanwhile."""
        handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
        code, _, err = shell.ask(self.queued.delete())
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if code == 0:
            shell.say(f'deleted {self.queued.name}')
        elif not re.search('NOT_FOUND|not found|404', err):
            shell.say(f'{gcloud.failure("delete the slice", err)} It may go on costing; to delete it: '
                      f'{shell.shown(self.queued.delete())}')

    def attempt(self):
        """Returns the exit code of the command on slices that are there, run again as long as it ends with 75."""
        try:
            if subprocess.run(['sh', '-c', self.pack()], check=False).returncode or not os.path.exists(self.file):
                raise shell.Fault(f'git cannot name the files of {shell.ROOT}; try git init there.')
            shell.say(f'copying {os.path.getsize(self.file) / 1e6:.1f} MB of code and installing on every worker')
            self.remotely('copy the code', self.queued.send(self.file))
            self.remotely('unpack the code', self.queued.on_all(UNPACK))
            self.remotely('install the project', self.queued.on_all(INSTALL))
        finally:
            if os.path.exists(self.file):
                os.remove(self.file)
        stopped, code = False, shell.STOPPED
        while code == shell.STOPPED and not stopped:
            self.remotely('start the command', self.queued.on_all(self.start(time.time_ns())))
            code, stopped = self.watch()
            stopped = stopped or self.overdue()
            if code == shell.STOPPED and not stopped:
                shell.say('the command was stopped and has saved; running it again')
        if code not in (0, shell.STOPPED):
            self.check_alive()
        if code != shell.STOPPED:
            others, out, _ = shell.ask(self.queued.on_all(CHECK))
            print(out, end='')
            code = code or others
        for words in self.fetched():
            if shell.ask(words)[0]:
                shell.say(f'nothing was fetched with {shell.shown(words)}')
        return code

    def overdue(self):
        hours = self.options.hours
        return bool(hours) and time.monotonic() - self.began > hours * 3600

    def remotely(self, what, words):
        """Runs a command of gcloud that needs the slices; raises Gone if they are what is missing."""
        try:
            gcloud.do(what, words, tries=3, pause=self.options.poll / 4)
        except shell.Fault:
            self.check_alive()
            raise

    def check_alive(self):
        """Raises Gone if the slices were preempted or deleted."""
        state = self.queued.state()
        node = self.queued.node_state(self.options.slices) if state == 'ACTIVE' else state
        if state is None or node in gcloud.LOST:
            raise gcloud.Gone(f'{self.queued.name} was taken away ({(node or "gone").lower()})')

    def watch(self):
        """Shows the output of worker 0 until it ends; returns (exit code, whether we asked it to stop)."""
        log, drops, stopped = gcloud.Log(), 0, False
        while True:
            try:
                before = log.seen
                code = log.follow(self.queued.on_first(FOLLOW.format(first=before + 1)))
                if code == -1:
                    raise gcloud.Gone(f'worker 0 of {self.queued.name} was restarted under the command')
                if code is not None:
                    return code, stopped
                drops = 1 if log.seen > before else drops + 1
                self.check_alive()
                if drops > 10:
                    raise shell.Fault(f'{self.queued.name} is there but does not answer; look at it with '
                                      f'{shell.shown(self.queued.on_first("tail ~/lm.run/log"))}')
                shell.say('the connection is lost; the command goes on; connecting again')
                time.sleep(self.options.poll / 4 * drops)
            except KeyboardInterrupt:
                if stopped:
                    raise
                stopped = True
                shell.say('asking the command to stop and save; once more deletes the slice at once')
                shell.ask(self.queued.on_all(STOP))


if __name__ == '__main__':
    shell.run(main)
