#!/usr/bin/env python3
"""Runs a command on Cloud TPUs: creates the slice, copies the project, runs, fetches the results, deletes the slice.

    launch/tpu.py v5e-16 --spot --bucket=NAME -- lm train experiments/llama_1b.py --workdir=/results/run

The command runs on every worker; the output of worker 0 is shown. Every worker sees the bucket as the folder /results,
through Cloud Storage FUSE: create it with a hierarchical namespace (gcloud storage buckets create gs://NAME
--uniform-bucket-level-access --enable-hierarchical-namespace), without which a save that is interrupted can be left
half renamed. When the slice is preempted it is created anew and
the same line is run again, as when the command ends with code 75 (it was asked to stop, and has saved). Ctrl-C asks
the command to stop; a second one deletes the slice at once. If this program or its machine is lost, the slice stays
and goes on costing; the same line takes up the same run. Slices are named as Cloud TPU names them: v5p-16 and v4-16
count cores, v5e-16 and v6e-16 chips.
"""

import interrupt  # isort: skip  # noqa: F401 - first, so that Ctrl-C is one line from here on
import hashlib
import os
import pathlib
import re
import signal
import tempfile
import time

import archive
import flags
import gcloud
import shell
import slices
import workers

PACK = archive.packing('cz')


def main(arguments):
    options, command = flags.parse(parser(), arguments)
    kind = slices.find(options.slice)
    if not kind.generation.runtime:
        raise shell.Fault(f'{options.slice} cannot be had as a queued resource, only in GKE; try launch/gke.py '
                          f'{options.slice}.')
    check(options, command)
    job = Job(options, kind, command)
    shell.check_length(job.start(time.time_ns()), 'the command, quoted for the workers,')
    shell.say(slices.cost(kind, options.slices, options))
    if options.dry_run:
        shell.result('\n'.join(words if isinstance(words, str) else shell.shown(words) for words in job.steps()))
        return 0
    shell.need('gcloud', gcloud.MISSING)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return job.run()


def parser():
    made = flags.Parser(prog='tpu.py', description=__doc__, usage='tpu.py SLICE [options] -- command ...')
    made.add_argument('slice', help='e.g. v5e-16, v5p-128, v6e-256')
    made.add_argument('--slices', type=flags.count, default=1, metavar='N', help='slices joined by the slow network')
    tier = made.add_mutually_exclusive_group()
    tier.add_argument('--spot', action='store_true', help='capacity that may be taken away, for less')
    tier.add_argument('--reserved', action='store_true', help='capacity of a reservation')
    made.add_argument('--zone', help='by default one that has the slice')
    made.add_argument('--project', help="by default gcloud's own")
    made.add_argument('--name', help='name of the slice; by default made from the command')
    made.add_argument('--runtime', help='software of the machines; by default what the slice needs')
    made.add_argument('--gcloud', type=flags.option, action='append', default=[], metavar='OPTION',
                      help='any other option of queued-resources create, e.g. --gcloud=--network=mine')
    made.add_argument('--bucket', metavar='NAME', help='bucket that is the folder /results of every worker')
    made.add_argument('--fetch', action='append', metavar='PATH',
                      help='what to copy back from worker 0 (runs), into a new folder under runs/tpu')
    made.add_argument('--hours', type=flags.positive, help='ask the command to stop after this long on the slice')
    made.add_argument('--price', type=flags.positive, help='dollars for an hour of a chip, for the cost stated')
    made.add_argument('--retries', type=flags.count, default=20, metavar='N',
                      help='how often to start again after a preemption or for want of capacity (%(default)s)')
    made.add_argument('--keep', action='store_true', help='do not delete the slice at the end: it goes on costing')
    made.add_argument('--poll', type=flags.positive, default=20, metavar='SECONDS',
                      help='how often to ask for its state (%(default)s)')
    made.add_argument('--dry-run', action='store_true', help='print the cost and the commands and run nothing')
    return made


def check(options, command):
    """Raises a Fault for names that Google Cloud or ssh refuse, and warns of a run that preemption would lose."""
    gcloud.check_bucket(options.bucket, command)
    if options.name and not re.fullmatch('[a-z]([-a-z0-9]{0,61}[a-z0-9])?', options.name):
        raise shell.Fault(f'--name={options.name} is not a name there: lower-case letters, digits and -, beginning '
                          'with a letter, at most 63; try --name=run-1.')
    for path in options.fetch or ():
        if not re.fullmatch(r'[\w.+=@%,-]+(/[\w.+=@%,-]+)*', path, re.ASCII) or '..' in path.split('/'):
            raise shell.Fault(f'--fetch={path} is not a path in the project of letters, digits, / and ._+=@%,- alone, '
                              'which a shell there reads; try --fetch=runs.')
    if options.spot and not options.bucket:
        shell.say('what the command saves is lost when the slice is preempted; try --bucket=NAME, and '
                  '--workdir=/results/run in the command')


class Job:
    """One command on one request for slices, from its creation to its deletion."""

    def __init__(self, options, kind, command):
        self.options, self.kind = options, kind
        line = shell.shown(['launch/local.sh', *command])
        digest = hashlib.sha256(os.fsencode(f'{options.slice} {options.slices} {line}')).hexdigest()[:6]
        self.queued = gcloud.Queued(options.name or f'lm-{options.slice}-{digest}',
                                    options.zone or kind.generation.zone, options.project)
        self.line, self.content, self.began, self.asked = line, None, None, False

    def create(self):
        options = self.options
        extra = [f'--runtime-version={options.runtime or self.kind.generation.runtime}', *options.gcloud,
                 *(['--spot'] if options.spot else []), *(['--reserved'] if options.reserved else [])]
        return self.queued.create(self.kind, options.slices, extra)

    def unpack(self):
        """Returns the shell commands that make the workers ready, and what each does."""
        mount = workers.MOUNT.format(bucket=self.options.bucket, results=gcloud.RESULTS)
        return {**({'mount the bucket': mount} if self.options.bucket else {}), 'unpack the code': workers.UNPACK,
                'install the project': workers.INSTALL}

    def start(self, token):
        limit = ''
        if self.options.hours:
            spent = time.monotonic() - self.began if self.began else 0
            limit = f'timeout --preserve-status --signal=TERM {max(int(self.options.hours * 3600 - spent), 1)} '
        return workers.START.format(token=token, run=shell.shown([workers.RUN.format(command=limit + self.line)]))

    def fetched(self, place):
        """Returns [(folder of this machine under `place`, the command that fetches a path into it)]."""
        paths = [pathlib.PurePath(path) for path in self.options.fetch or ['runs']]
        return [(place / path.parent, self.queued.fetch(f'lm/{path}', place / path.parent)) for path in paths]

    def steps(self):
        """Yields the commands in order, as if nothing went wrong."""
        queued, file = self.queued, '/tmp/lm.tgz'
        yield from (self.create(), queued.describe(gcloud.STATE), f'{PACK} >{file}', queued.send(file),
                    *map(queued.on_all, self.unpack().values()), queued.on_all(self.start('1')),
                    queued.on_first(workers.FOLLOW.format(first=1)), queued.on_all(workers.CHECK))
        for folder, words in self.fetched(shell.folder(None, 'tpu')):
            yield from (['mkdir', '-p', folder], words)
        if not self.options.keep:
            yield queued.delete()

    def run(self):
        """Returns the exit code of the command; starts again what was preempted, and deletes the slice at the end."""
        self.content = archive.packed(PACK)  # before anything costs
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
        if state is not None and self.queued.creator != gcloud.OURS:
            raise shell.Fault(f'{self.queued.name} exists and was not created by tpu.py; try another --name, or delete '
                              f'it: {shell.shown(self.queued.delete())}')
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
        with tempfile.NamedTemporaryFile(suffix='.tgz') as file:
            file.write(self.content)
            file.flush()
            shell.say(f'copying {file.tell() / 1e6:.1f} MB of code and installing on every worker')
            self.remotely('copy the code', self.queued.send(file.name))
        for what, command in self.unpack().items():
            self.remotely(what, self.queued.on_all(command))
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
            others, out, _ = shell.ask(self.queued.on_all(workers.CHECK))
            for line in out.splitlines():
                shell.show(line)
            code = code or others
        self.fetch()
        return code

    def fetch(self):
        """Copies results into a new folder, where they replace nothing; tells what could not be had."""
        for folder, words in self.fetched(shell.folder(None, 'tpu')):
            folder.mkdir(parents=True, exist_ok=True)
            missing = shell.ask(words)[0]
            shell.say(f'nothing was fetched with {shell.shown(words)}' if missing else f'the results are in {folder}')

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
                code = log.follow(self.queued.on_first(workers.FOLLOW.format(first=before + 1)))
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
                shell.ask(self.queued.on_all(workers.STOP))


if __name__ == '__main__':
    shell.run(main)
