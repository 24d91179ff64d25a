#!/usr/bin/env python3
"""Runs a command in GKE, on a node pool of TPUs or GPUs, as a JobSet; or through xpk.

    launch/gke.py v6e-16 --bucket=NAME -- lm train experiments/llama_1b.py --workdir=/results/run
    launch/gke.py h100-16 --bucket=NAME -- lm train experiments/llama_1b.py --workdir=/results/run
    launch/gke.py v6e-16 --xpk=CLUSTER -- lm train experiments/llama_1b.py --workdir=/shared/run

Every pod sees the bucket as the folder /results, through Cloud Storage FUSE: create it with a hierarchical namespace
(gcloud storage buckets create gs://NAME --uniform-bucket-level-access --enable-hierarchical-namespace), without which
a save that is interrupted can be left half renamed. The code is copied to the bucket too (or to --code), from which
every pod fetches it, so --account must be allowed to read and write there. --image needs Python 3.11 or newer and bash,
and `lm` is installed when it starts unless the image has it; with --code=image it holds the whole project, and the
command runs in the image's own folder. A run that is preempted, or ends with code 75 (asked to stop, and saved), is
started again. The output of worker 0 is shown; Ctrl-C stops watching and leaves the run alone. Nodes of GPUs talk over
the pods' own network: where yours have GPUDirect, use an image and a cluster that set it up.
"""

import interrupt  # isort: skip  # noqa: F401 - first, so that Ctrl-C is one line from here on
import hashlib
import json
import os
import re
import subprocess
import tempfile
import time

import archive
import flags
import gcloud
import jobset
import shell
import slices

PLAIN = 'python:3.12'  # an image without the project
REMEDIES = [
    ('connection refused|was refused|current-context is not set|no configuration has been provided',
     'kubectl knows no cluster; run gcloud container clusters get-credentials CLUSTER --location=ZONE.'),
    ('no matches for kind "JobSet"|the server doesn\'t have a resource type "jobset',
     'the cluster has no JobSet; run kubectl apply --server-side -f '
     'https://github.com/kubernetes-sigs/jobset/releases/latest/download/manifests.yaml.'),
    ('gke-gcloud-auth-plugin', 'run gcloud components install gke-gcloud-auth-plugin.'),
    ('Unauthorized|must be logged in|auth login|Reauthentication', 'run gcloud auth login.'),
    ('Forbidden|forbidden', 'ask for the role Kubernetes Engine Developer (roles/container.developer).'),
]


def main(arguments):
    options, command = flags.parse(parser(), arguments)
    gcloud.check_bucket(options.bucket, command)
    kind, pool = chosen(options)
    if kind:
        shell.say(slices.cost(kind, options.slices, options))
    name = options.name or default_name(options, command)
    if options.xpk:
        return through_xpk(options, name, kind, command)
    code = None if options.code == archive.IN_IMAGE else archive.Archive(archive.folder(options.code, options.bucket))
    manifest = jobset.manifest(name, pool, options, command, code)
    words = kubectl(options, 'apply', '--server-side', '-f', '-')
    if options.dry_run:
        copy = (f'# the code: {code}\n{code.command} >/tmp/lm.tgz\n{shell.shown(code.uploading("/tmp/lm.tgz"))}\n'
                if code else '')
        shell.result(f'{copy}{shell.shown(words)} {shell.document(manifest)}')
        return 0
    shell.need('kubectl', 'run gcloud components install kubectl, or see https://kubernetes.io/docs/tasks/tools.')
    state = state_of(options, name)
    if state in (None, 'Completed', 'Failed'):
        if code:
            shell.say(f'copying the code ({code}) to {code.url}')
            code.upload()
        if state:
            ask(options, 'delete', 'jobset', name)
        ask(options, 'apply', '--server-side', '-f', '-', text=manifest)
        shell.say(f'{name} is submitted; to stop it: {shell.shown(kubectl(options, "delete", "jobset", name))}')
    else:
        shell.say(f'{name} is running already; watching it')
    if options.detach:
        return 0
    try:
        return follow(options, name)
    except KeyboardInterrupt:
        shell.say(f'no longer watching {name}, which goes on; to stop it: '
                  f'{shell.shown(kubectl(options, "delete", "jobset", name))}')
        return 130


def parser():
    made = flags.Parser(prog='gke.py', description=__doc__, usage='gke.py SLICE [options] -- command ...')
    made.add_argument('slice', help='e.g. v5e-16, v6e-256, tpu7x-128, h100-8, h200-16')
    made.add_argument('--slices', type=flags.count, default=1, metavar='N', help='TPU slices (%(default)s)')
    made.add_argument('--image', default=PLAIN, help='image of the container (%(default)s)')
    made.add_argument('--bucket', metavar='NAME', help='bucket that is the folder /results of every pod')
    made.add_argument('--code', metavar='WHERE', help='folder in a bucket for the archive of the code, gs://...; or '
                      '"image" where the image holds it; by default lm-code in --bucket')
    made.add_argument('--name', help='name of the run; by default made from the command')
    made.add_argument('--namespace', help='namespace; by default that of the context')
    made.add_argument('--account', help='Kubernetes service account, e.g. one that may write to --bucket')
    made.add_argument('--queue', help='local queue of Kueue to submit to')
    made.add_argument('--spot', action='store_true', help='nodes that may be taken away, for less')
    made.add_argument('--restarts', type=flags.count, default=3, metavar='N',
                      help='restarts after a failure that is no preemption (%(default)s)')
    made.add_argument('--hours', type=flags.positive, help='for the cost stated')
    made.add_argument('--price', type=flags.positive, help='dollars for an hour of a chip, for the cost stated')
    made.add_argument('--xpk', metavar='CLUSTER', help='submit to this cluster through xpk, and return')
    made.add_argument('--xpk-option', type=flags.option, action='append', default=[], metavar='OPTION',
                      help='any other option of xpk workload create, e.g. --xpk-option=--zone=us-east5-b')
    made.add_argument('--detach', action='store_true', help='submit and return')
    made.add_argument('--poll', type=flags.positive, default=10, metavar='SECONDS',
                      help='how often to ask for its state (%(default)s)')
    made.add_argument('--dry-run', action='store_true', help='print what would run and submit nothing')
    return made


def chosen(options):
    """Returns (slices.Slice or None for GPUs, jobset.Pool); raises a Fault for what does not go together."""
    if options.name and not re.fullmatch('[a-z]([-a-z0-9]{0,38}[a-z0-9])?', options.name):
        raise shell.Fault(f'--name={options.name} is not a name there: lower-case letters, digits and -, beginning '
                          'with a letter, at most 40; try --name=run-1.')
    if options.code == archive.IN_IMAGE and options.image == PLAIN:
        raise shell.Fault(f'--code={archive.IN_IMAGE}: the image {PLAIN} does not hold the project; name yours with '
                          '--image=NAME.')
    match = re.fullmatch(r'(.+)-([1-9][0-9]{0,8})', options.slice)
    if not match or match[1] not in jobset.GPUS:
        if options.slice.split('-')[0] in jobset.GPUS:
            raise shell.Fault(f'{options.slice!r} has no number of GPUs; try {options.slice.split("-")[0]}-8.')
        kind = slices.find(options.slice)
        if options.slices > 1 and kind.hosts == 1:
            raise shell.Fault(f'--slices={options.slices}: GKE joins slices of several hosts only, and {options.slice} '
                              f'has one; try {slices.several(kind)}.')
        return kind, jobset.tpu_pool(kind, options.slices)
    if options.slices > 1:
        raise shell.Fault(f'--slices={options.slices} is for TPUs; try {match[1]}-{int(match[2]) * options.slices}.')
    if options.xpk:
        raise shell.Fault(f'--xpk is for TPUs here; without it, launch/gke.py {options.slice} submits a JobSet itself.')
    return None, jobset.gpu_pool(match[1], int(match[2]))


def default_name(options, command):
    digest = hashlib.sha256(os.fsencode(f'{options.slices} {shell.shown(command)}')).hexdigest()[:6]
    return f'lm-{options.slice}-{digest}'.replace('_', '-')


def through_xpk(options, name, kind, command):
    """Returns the exit code of xpk, which writes the command into a line of YAML, and that of a container."""
    if options.bucket:
        raise shell.Fault('--bucket is not for xpk, which has storage of its own: see xpk storage attach.')
    if not ''.join(command).isprintable():
        raise shell.Fault('the command has a line break or another character that cannot be printed, which xpk does '
                          'not take; leave it out, or leave --xpk out.')
    [line] = jobset.literal(f'LM_EXTRAS=tpu {shell.shown(["launch/local.sh", *command])}')
    shell.check_length(line, 'the command, quoted for xpk,')
    with tempfile.TemporaryDirectory() as folder:
        code = '/tmp/lm' if options.dry_run else folder
        words = ['xpk', 'workload', 'create', f'--cluster={options.xpk}', f'--workload={name}',
                 f'--tpu-type={kind.accelerator}', f'--num-slices={options.slices}', f'--command={line}',
                 f'--base-docker-image={options.image}', f'--script-dir={code}',
                 f'--restart-on-exit-codes={shell.STOPPED}', f'--max-restarts={options.restarts}',
                 *(['--spot'] if options.spot else []), *options.xpk_option]
        copy = f'{archive.packing("c")} | tar x -C {shell.shown([code])}'
        if options.dry_run:
            shell.result(f'mkdir -p {code}\n{copy}\n{shell.shown(words)}')
            return 0
        shell.need('xpk', 'run pip install xpk, or leave --xpk out.')
        archive.packed(copy)
        return subprocess.run(words, check=False).returncode


def kubectl(options, *words):
    return ['kubectl', *([f'--namespace={options.namespace}'] if options.namespace else []), *words]


def ask(options, *words, text=None):
    """Returns the output of kubectl; raises a Fault with the remedy."""
    code, out, err = shell.ask(kubectl(options, *words), text)
    if code:
        lines = [line.strip() for line in err.splitlines() if line.strip()] or [f'code {code}']
        remedy = next((remedy for pattern, remedy in REMEDIES if re.search(pattern, err)), None)
        reason = re.sub(r'^(error|Error from server[^:]*): ', '', lines[-1]).rstrip('.')
        raise shell.Fault(f'kubectl could not {words[0]}: {reason}{": " + remedy if remedy else ""}')
    return out


def answer(options, *words):
    """Returns what kubectl answers in JSON, {} where it answers nothing."""
    out = ask(options, *words, '-o', 'json').strip()
    try:
        return json.loads(out or '{}')
    except ValueError as error:
        raise shell.Fault(f'kubectl answers what is no JSON ({out[:60]}); see what '
                          f'{shell.shown(kubectl(options, *words, "-o", "json"))} says.') from error


def state_of(options, name):
    """Returns Completed, Failed, '' for one that is under way, or None if there is no such JobSet.

    Raises a Fault for one that was not created here: it is not ours to watch or to replace.
    """
    known = answer(options, 'get', 'jobset', name, '--ignore-not-found')
    if known and not jobset.OURS.items() <= known.get('metadata', {}).get('labels', {}).items():
        raise shell.Fault(f'{name} exists and was not created by gke.py; try another --name, or delete it: '
                          f'{shell.shown(kubectl(options, "delete", "jobset", name))}')
    return known.get('status', {}).get('terminalState', '') if known else None


def follow(options, name):
    """Shows the output of worker 0, over restarts, until the JobSet has ended; returns the exit code of its pods."""
    first = (f'jobset.sigs.k8s.io/jobset-name={name},jobset.sigs.k8s.io/job-index=0,'
             'batch.kubernetes.io/job-completion-index=0')
    seen, waiting = set(), None
    while True:
        state = state_of(options, name)
        for pod in answer(options, 'get', 'pods', f'--selector={first}').get('items', []):
            uid, phase = pod['metadata']['uid'], pod['status'].get('phase', 'Unknown')
            if phase != waiting:
                waiting = phase
                shell.say(f'worker 0 is {phase.lower()}')
            if phase != 'Pending' and uid not in seen:
                seen.add(uid)
                words = kubectl(options, 'logs', '--follow', '--container=lm', pod['metadata']['name'])
                subprocess.run(words, check=False)
        if state is None:
            raise shell.Fault(f'{name} was deleted; run the same line again to start anew.')
        if state:
            return 0 if state == 'Completed' else explain(options, name)
        time.sleep(options.poll)


def explain(options, name):
    """Shows the end of the output of a pod that failed; returns its exit code."""
    pods = answer(options, 'get', 'pods', f'--selector=jobset.sigs.k8s.io/jobset-name={name}')
    for pod in pods.get('items', []):
        for status in [*pod['status'].get('initContainerStatuses', []), *pod['status'].get('containerStatuses', [])]:
            ended = status.get('state', {}).get('terminated')
            if ended and ended['exitCode']:
                worker, step = pod['metadata']['name'], ' (fetching the code)' if status['name'] == 'code' else ''
                shell.say(f'{worker}{step} ended with code {ended["exitCode"]}. The end of its output:')
                shell.tell(ask(options, 'logs', '--tail=30', f'--container={status["name"]}', worker).rstrip('\n'))
                return ended['exitCode']
    shell.say(f'{name} has failed; {shell.shown(kubectl(options, "describe", "jobset", name))} tells more')
    return 1


if __name__ == '__main__':
    shell.run(main)
