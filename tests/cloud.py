#!/usr/bin/env python3
"""Stands in for `gcloud`: writes down how it is called, runs what is sent to workers in folders of this machine, keeps
buckets under $FAKE/buckets, and fails as the real one does where $FAKE/faults says so (a JSON list of [part of the
command, fault]).
"""
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

FAKE = pathlib.Path(os.environ['FAKE'])
ERRORS = {
    'auth': 'ERROR: (gcloud.compute.tpus.queued-resources.create) You do not currently have an active account selected.'
            '\nPlease run:\n\n  $ gcloud auth login\n\nto obtain new credentials.',
    'project': 'ERROR: (gcloud.compute.tpus.queued-resources.create) Error parsing [queued_resource].\nThe '
               '[queued_resource] resource is not properly specified.\nFailed to find attribute [project]. The '
               'attribute can be set in the following ways: \n- set the property `core/project`',
    'quota': 'ERROR: (gcloud.compute.tpus.queued-resources.create) {\n  "code": 8,\n  "message": "Quota limit '
             '\'TPUV5sLitepodPerProjectPerZone\' has been exceeded. Limit: 4 in zone us-west4-a."\n}',
    'stockout': 'ERROR: (gcloud.compute.tpus.queued-resources.create) {\n  "code": 8,\n  "message": "There is no more '
                'capacity in the zone \\"us-west4-a\\"; you can try in another zone"\n}',
    'disabled': 'ERROR: (gcloud.compute.tpus.queued-resources.create) PERMISSION_DENIED: Cloud TPU API has not been '
                'used in project 7 before or it is disabled. Enable it by visiting ...',
    'agent': 'ERROR: (gcloud.compute.tpus.queued-resources.scp) SSH Key is not present in the SSH agent. Please run '
             '"ssh-add /root/.ssh/google_compute_engine" to add it, and try again.',
    'drop': 'ERROR: (gcloud.compute.tpus.queued-resources.ssh) [/usr/bin/ssh] exited with return code [255].',
    'preempt': 'ERROR: (gcloud.compute.tpus.queued-resources.ssh) This TPU has terminal state "PREEMPTED", so it '
               'cannot be used anymore.',
    'missing': 'ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource not found.',
    'bucket': 'ERROR: (gcloud.storage.cp) gs://bucket not found: 404.',
    'denied': 'ERROR: (gcloud.storage.cp) [me@example.com] does not have permission to access b instance [bucket] (or '
              'it may not exist): me@example.com does not have storage.objects.create access to the Google Cloud '
              'Storage object.',
    'login': 'ERROR: (gcloud.storage.cp) You do not currently have an active account selected.\nPlease run:\n\n  '
             '$ gcloud auth login\n\nto obtain new credentials.',
}


def fail(name, code=1):
    print(ERRORS[name], file=sys.stderr)
    sys.exit(code)


def fault(words):
    """Returns the fault that waits for this command, once."""
    path = FAKE / 'faults'
    faults = json.loads(path.read_text()) if path.exists() else []
    for i, (part, name) in enumerate(faults):
        if part in ' '.join(words):
            path.write_text(json.dumps(faults[:i] + faults[i + 1:]))
            return name
    return None


def workers():
    return sorted(FAKE.glob('worker-*'))


def reboot():
    """Kills what runs on the workers."""
    for pid in FAKE.glob('worker-*/lm.run/pid'):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def take_away():
    """Kills what runs on the workers and removes them."""
    reboot()
    for worker in workers():
        shutil.rmtree(worker, ignore_errors=True)


def start(worker, command):
    return subprocess.Popen(['bash', '-c', command], env={**os.environ, 'HOME': str(worker), 'WORKER': worker.name},
                            cwd=worker, start_new_session=True)


def ssh(options, words):
    chosen = workers() if options['worker'] == 'all' else workers()[:1]
    name = fault([words[3], options['command']])
    processes = [start(worker, options['command']) for worker in chosen]
    if name == 'reboot':
        time.sleep(0.5)
        reboot()
    elif name:
        time.sleep(0.5)
        for process in processes:
            os.killpg(process.pid, signal.SIGKILL)
        if name == 'preempt':
            take_away()
            (FAKE / 'state').write_text('SUSPENDED')
        fail(name, 255 if name == 'drop' else 1)
    sys.exit(next((code for code in [process.wait() for process in processes] if code), 0))


def create(options):
    for i in range(int(os.environ.get('FAKE_WORKERS', '2'))):
        (FAKE / f'worker-{i}').mkdir()
    (FAKE / 'state').write_text('WAITING_FOR_RESOURCES')
    (FAKE / 'description').write_text(options['description'])


def describe(options):
    state = FAKE / 'state'
    if not state.exists():
        fail('missing')
    if 'error' not in options['format']:
        print(state.read_text(), (FAKE / 'description').read_text(), sep='\t')
    if state.read_text() == 'WAITING_FOR_RESOURCES':
        state.write_text('ACTIVE')


def scp(places):
    source, target = places
    if ':' in source:
        source = str(workers()[0] / source.split(':')[1])
        sys.exit(subprocess.run(['cp', '-r', source, target], check=False, stderr=subprocess.DEVNULL).returncode)
    for worker in workers():
        shutil.copy(source, worker / target.split(':')[1])


def storage(words):
    """Copies between the files of this machine and the buckets."""
    source, target = (FAKE / 'buckets' / word[5:] if word.startswith('gs://') else pathlib.Path(word)
                      for word in words if not word.startswith('--'))
    if not source.exists():
        fail('bucket')
    if not (target.exists() and '--no-clobber' in words):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def main():
    words = sys.argv[1:]
    with open(FAKE / 'calls', 'a', encoding='utf-8') as calls:
        calls.write(json.dumps(words) + '\n')
    if words[:2] == ['storage', 'cp']:
        name = fault(words)
        fail(name) if name else storage(words[2:])
        return
    verb, options = words[3], dict(word[2:].split('=', 1) for word in words if '=' in word and word.startswith('--'))
    if verb == 'ssh':
        ssh(options, words)
    name = fault(words)
    if name == 'refused':
        create(options)
        (FAKE / 'state').write_text('FAILED')
        sys.exit(0)
    if name:
        fail(name)
    if verb == 'create':
        create(options)
    elif verb == 'describe':
        describe(options)
    elif verb == 'scp':
        scp([word for word in words[4:] if not word.startswith('--')])
    elif verb == 'delete':
        if not (FAKE / 'state').exists():
            fail('missing')
        take_away()
        (FAKE / 'state').unlink()


if __name__ == '__main__':
    main()
