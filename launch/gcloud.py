"""Cloud TPUs through the program `gcloud`: the commands for a queued resource, and what their errors mean."""

import re
import subprocess
import sys
import tempfile
import time

import shell

OURS = 'launch/tpu.py'  # the description of slices that this project has created, and may delete
RESULTS = '/results'  # the folder that is the bucket, on workers and in pods
STATE = 'state.state,tpu.nodeSpec[0].node.description'
MISSING = 'install it from https://cloud.google.com/sdk/docs/install and run gcloud auth login.'
LOST = ('SUSPENDING', 'SUSPENDED', 'FAILED', 'PREEMPTED', 'TERMINATED', 'DELETING', 'STOPPED', 'STOPPING')
# Patterns of errors of gcloud and the services behind it, each with its remedy.
LOGIN = (r'active account selected|Reauthentication|invalid_grant|gcloud auth login|application-default login',
         'gcloud is not logged in; run gcloud auth login, then this again.')
REMEDIES = [
    LOGIN,
    (r'(property|attribute) \[(core/)?project\]|project property is set to the empty',
     'no Google Cloud project is chosen; add --project=NAME, or run gcloud config set project NAME.'),
    (r'SERVICE_DISABLED|has not been used in project|is disabled\. Enable it',
     'the TPU service is off in this project; run gcloud services enable tpu.googleapis.com.'),
    (r'[Qq]uota|QUOTA_EXCEEDED',
     'the quota does not cover it; ask for more at https://console.cloud.google.com/iam-admin/quotas, '
     'or try a smaller slice, another --zone, or --spot, which has a quota of its own.'),
    (r'not present in the SSH agent', 'start an agent with your key: eval $(ssh-agent); ssh-add '
     '~/.ssh/google_compute_engine, then this again.'),
    (r'PERMISSION_DENIED|does not have permission|403',
     'this account may not do that; ask for the role TPU Admin (roles/tpu.admin), or choose another --project.'),
    (r'accelerator type|Accelerator type|acceleratorType',
     'the zone does not offer it; gcloud compute tpus accelerator-types list --zone=ZONE shows what it has.'),
]
STOCKOUT = r'no more capacity|[Ss]tockout|STOCKOUT|[Ii]nsufficient capacity|ZONE_RESOURCE_POOL_EXHAUSTED'


def check_bucket(bucket, command):
    """Raises a Fault for what is no name of a bucket, and for a run directory of lm that is no folder."""
    if bucket and not re.fullmatch('[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]', bucket):
        raise shell.Fault(f'--bucket={bucket} is not the name of a bucket; try --bucket=NAME, without gs://.')
    place = re.search(r'--workdir[= ]gs://([^/\s]+)(\S*)', ' '.join(command)) if command[0] == 'lm' else None
    if place:
        raise shell.Fault(f'--workdir=gs://{place[1]}{place[2]} is not a folder, which a run of lm needs; try '
                          f'--bucket={place[1]} before --, and --workdir={RESULTS}{place[2] or "/run"} after it.')


class Gone(Exception):
    """The slices were preempted, or there is no capacity for them; the reason is its text."""


class Queued:
    """A queued resource: a request for slices of TPU that becomes machines, by its name."""

    def __init__(self, name, zone, project):
        self.name, self.creator = name, None
        self.place = [f'--zone={zone}', *([f'--project={project}'] if project else []), '--quiet']

    def words(self, verb, *rest):
        return ['gcloud', 'compute', 'tpus', 'queued-resources', verb, *rest, *self.place]

    def create(self, kind, slices, extra):
        nodes = ([f'--node-id={self.name}'] if slices == 1 else
                 [f'--node-count={slices}', f'--node-prefix={self.name}'])
        return self.words('create', self.name, f'--accelerator-type={kind.accelerator}', *nodes, *extra,
                          f'--description={OURS}')

    def describe(self, field):
        return self.words('describe', self.name, f'--format=value({field})')

    def delete(self):
        return self.words('delete', self.name, '--force')

    def on_all(self, command):
        return self.words('ssh', self.name, '--node=all', '--worker=all', '--batch-size=all', f'--command={command}')

    def on_first(self, command):
        return self.words('ssh', self.name, '--node=0', '--worker=0', f'--command={command}')

    def send(self, file):
        return self.words('scp', file, f'{self.name}:lm.tgz', '--node=all', '--worker=all', '--batch-size=all')

    def fetch(self, remote, local):
        return self.words('scp', f'{self.name}:{remote}', local, '--recurse', '--node=0', '--worker=0')

    def state(self):
        """Returns the state of the request, e.g. ACTIVE, or None if there is no such request; notes who created it."""
        code, out, err = shell.ask(self.describe(STATE))
        if code and re.search('NOT_FOUND|not found|404', err):
            return None
        if code:
            raise failure('tell the state', err)
        state, _, self.creator = out.strip().partition('\t')
        return state

    def node_state(self, slices):
        """Returns the state of the first slice itself, e.g. READY or PREEMPTED; None if it cannot be had."""
        node = self.name if slices == 1 else f'{self.name}-0'
        code, out, _ = shell.ask(['gcloud', 'compute', 'tpus', 'tpu-vm', 'describe', node, '--format=value(state)',
                                  *self.place])
        return out.strip() if code == 0 else None


def failure(what, err, remedies=REMEDIES):
    """Returns the exception for what gcloud wrote to standard error: Gone for a stockout, else a Fault."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith('ERROR')), lines[-1] if lines else 'no error message')
    reason = re.sub(r'^ERROR: (\([\w.-]+\) )?', '', reason)
    message = re.search(r'"message": "((?:[^"\\]|\\.)*)"', err)
    reason = re.sub(r'\\(.)', r'\1', message[1]) if message else reason
    if re.search(STOCKOUT, err):
        return Gone(f'no capacity: {reason}')
    remedy = find_remedy(err, remedies)
    return shell.Fault(f'gcloud could not {what}: {reason.rstrip(".")}: {remedy}' if remedy else
                       f'gcloud could not {what}: {reason}')


def find_remedy(text, remedies=REMEDIES):
    """Returns the remedy of an error that the user can mend, or None."""
    if re.search(STOCKOUT, text):
        return None
    return next((remedy for pattern, remedy in remedies if re.search(pattern, text)), None)


def do(what, words, tries=1, pause=5):
    """Runs a command of gcloud, again if its connection drops; raises what `failure` makes of its last error."""
    for attempt in range(1, tries + 1):
        code, _, err = shell.ask(words)
        if code == 0:
            return
        if attempt < tries:
            shell.say(f'could not {what} (code {code}); trying again')
            time.sleep(pause * attempt)
    raise failure(what, err)


class Log:
    """The log of the command on worker 0; `seen` of its lines have been shown."""

    def __init__(self):
        self.seen = 0

    def follow(self, words):
        """Shows the lines after those seen; returns the exit code, None for a lost connection, -1 for a lost command.

        The remote command writes `number:line` for each line, 1 being the first after those seen (gcloud may connect
        again and start over), and at last `exit code`.
        """
        before, code = self.seen, None
        with tempfile.TemporaryFile('w+', errors='replace') as errors:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                                       encoding=sys.getfilesystemencoding(), errors='surrogateescape',
                                       start_new_session=True)
            try:
                for line in process.stdout:
                    numbered = re.match(r'(\d+):(.*)', line)
                    if numbered and before + int(numbered[1]) > self.seen:
                        self.seen = before + int(numbered[1])
                        shell.show(numbered[2])
                    elif ended := re.fullmatch(r'exit ([0-9]*)\s*', line):
                        code = int(ended[1] or -1)
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait()
            errors.seek(0)
            tail = [line for line in errors.read().splitlines() if line.strip()]
        if code is None:
            shell.tell(tail[-1] if tail else 'the connection ended')
        return code
