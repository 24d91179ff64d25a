"""The Kubernetes object of a run in GKE: a JobSet whose pods fetch the code from a bucket and run a command in it.

The fields are those of jobset.x-k8s.io/v1alpha2 (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/); labels
of nodes: https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice and .../how-to/gpus; locked memory, in
which a TPU's driver moves what goes to and from the host: .../how-to/tpus#privileged-mode; buckets as folders:
.../how-to/cloud-storage-fuse-csi-driver-ephemeral.
"""

import json
import os
from collections import namedtuple

import gcloud
import shell

PORT = 8476
OURS = {'app.kubernetes.io/managed-by': 'lm-launch-gke'}  # the label of the objects that this project has created
# A pool of nodes: labels that choose it, the resource a pod asks for and how much, pods of a job, and jobs.
Pool = namedtuple('Pool', 'labels resource amount pods jobs')
GPUS = {'a100-40g': 'nvidia-tesla-a100', 'a100': 'nvidia-a100-80gb', 'h100': 'nvidia-h100-80gb',
        'h100-mega': 'nvidia-h100-mega-80gb', 'h200': 'nvidia-h200-141gb', 'b200': 'nvidia-b200'}
NODE = 8  # GPUs of a node
LONGEST = 2 ** 20  # bytes of an object; etcd keeps 1.5 MiB, of which Kubernetes needs some
FETCHER = 'google/cloud-sdk:slim'  # image of the init container
# Scripts of bash -c, which take the URL and the sha256 of the code, and the words of the command, as arguments.
FETCH = '''gcloud storage cp "$0" /tmp/code.tgz && echo "$1  /tmp/code.tgz" | sha256sum --check --quiet &&
tar xzf /tmp/code.tgz -C /lm'''
LOCKED = 'ulimit -l 68719476736\n'
NVIDIA = '''export PATH=$PATH:/usr/local/nvidia/bin LD_LIBRARY_PATH=/usr/local/nvidia/lib64:${LD_LIBRARY_PATH:-}
'''  # where GKE mounts the driver
INSTALL = '''cd /lm && export PYTHONPATH=/lm
type -P -- "$0" >/dev/null || exec launch/local.sh "$0" "$@"
'''
RUN = 'exec -- "$0" "$@"'  # becomes the command, so that a request to stop reaches it


def tpu_pool(kind, count):
    """Returns the pool of `count` slices of a kind (slices.Slice)."""
    labels = {'cloud.google.com/gke-tpu-accelerator': kind.generation.node,
              'cloud.google.com/gke-tpu-topology': kind.topology}
    return Pool(labels, 'google.com/tpu', kind.chips // kind.hosts, kind.hosts, count)


def gpu_pool(kind, count):
    """Returns the pool of `count` GPUs of a kind, on whole nodes if there is more than one."""
    if count > NODE and count % NODE:
        low = count // NODE * NODE
        raise shell.Fault(f'{kind}-{count} is not a whole number of nodes of {NODE} GPUs; '
                          f'try {kind}-{low} or {kind}-{low + NODE}.')
    return Pool({'cloud.google.com/gke-accelerator': GPUS[kind]}, 'nvidia.com/gpu', min(count, NODE),
                max(count // NODE, 1), 1)


def manifest(name, pool, options, command, code):
    """Returns the JobSet as JSON; `code` is the archive.Archive that its pods fetch, None where the image holds it."""
    text = json.dumps(jobset(name, pool, options, command, code), indent=1)
    if len(text) > LONGEST:
        raise shell.Fault(f'the JobSet with the command takes {len(text):,} bytes, and Kubernetes takes {LONGEST:,}; '
                          'move settings from the command into the experiment file.')
    return text


def jobset(name, pool, options, command, code):
    metadata = {'name': name, 'labels': dict(OURS)}
    if pool.resource == 'google.com/tpu' and pool.pods > 1:  # a slice of several hosts is a node pool of its own
        metadata['annotations'] = {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}
    if options.queue:
        metadata['labels']['kueue.x-k8s.io/queue-name'] = options.queue
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet', 'metadata': metadata,
        'spec': {
            'ttlSecondsAfterFinished': 24 * 3600,
            'failurePolicy': {'maxRestarts': options.restarts, 'rules': [
                {'name': 'stoppedAndSaved', 'action': 'RestartJobSetAndIgnoreMaxRestarts',
                 'onJobFailureReasons': ['PodFailurePolicy']}]},
            'replicatedJobs': [{'name': 'worker', 'replicas': pool.jobs,
                                'template': {'spec': job(name, pool, options, command, code)}}]}}


def job(name, pool, options, command, code):
    """Returns the job of one slice, which fails with PodFailurePolicy where running it again goes on."""
    return {
        'parallelism': pool.pods, 'completions': pool.pods, 'completionMode': 'Indexed', 'backoffLimit': 0,
        'podFailurePolicy': {'rules': [
            {'action': 'FailJob', 'onExitCodes': {'containerName': 'lm', 'operator': 'In', 'values': [shell.STOPPED]}},
            {'action': 'FailJob', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}]},
        'template': {**({'metadata': {'annotations': {'gke-gcsfuse/volumes': 'true'}}} if options.bucket else {}),
                     'spec': pod(name, pool, options, command, code)}}


def pod(name, pool, options, command, code):
    spot = {'cloud.google.com/gke-spot': 'true'} if options.spot else {}
    tolerated = [pool.resource, *spot]
    tpu = pool.resource == 'google.com/tpu'
    script = (LOCKED if tpu else '') + NVIDIA + (INSTALL if code else '') + RUN
    memory, files = {'name': 'memory', 'mountPath': '/dev/shm'}, {'name': 'code', 'mountPath': '/lm'}
    spec = {
        'restartPolicy': 'Never', 'terminationGracePeriodSeconds': 120, 'nodeSelector': {**pool.labels, **spot},
        'tolerations': [{'key': key, 'operator': 'Exists'} for key in tolerated],
        'volumes': [{'name': 'memory', 'emptyDir': {'medium': 'Memory'}}],
        'containers': [{
            'name': 'lm', 'image': options.image, 'env': environment(name, pool),
            'command': literal('bash', '-c', script, *command),
            **({'securityContext': {'capabilities': {'add': ['SYS_RESOURCE']}}} if tpu else {}),
            'resources': {'limits': {pool.resource: pool.amount}},
            'volumeMounts': [memory, *([files] if code else [])]}]}
    if code:
        spec['volumes'].append({'name': 'code', 'emptyDir': {}})
        spec['initContainers'] = [{'name': 'code', 'image': FETCHER, 'volumeMounts': [files],
                                   'command': literal('bash', '-c', FETCH, code.url, code.digest)}]
    if options.bucket:
        spec['volumes'].append({'name': 'results', 'csi': {
            'driver': 'gcsfuse.csi.storage.gke.io',
            'volumeAttributes': {'bucketName': options.bucket, 'mountOptions': 'implicit-dirs'}}})
        spec['containers'][0]['volumeMounts'].append({'name': 'results', 'mountPath': gcloud.RESULTS})
    if options.account:
        spec['serviceAccountName'] = options.account
    return spec


def literal(*words):
    """Returns words of a container's command as Kubernetes leaves them alone: it replaces $(NAME), and $$ by $.

    An object is UTF-8, whatever the encoding of this terminal; raises a Fault for a word that is not.
    """
    try:
        return [os.fsencode(word).decode('utf-8').replace('$', '$$') for word in words]
    except UnicodeDecodeError as error:
        raise shell.Fault(f'{error.object!r} in the command is not UTF-8, as Kubernetes needs it; write it so, or '
                          'leave it out.') from error


def environment(name, pool):
    """Returns the variables of a container; GKE itself tells those on TPUs their place."""
    if pool.resource == 'google.com/tpu':
        return [{'name': 'LM_EXTRAS', 'value': 'tpu'}]
    if pool.pods == 1:
        return []
    index = {'fieldRef': {'fieldPath': "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    return [{'name': 'LM_COORDINATOR', 'value': f'{name}-worker-0-0.{name}:{PORT}'},
            {'name': 'LM_PROCESSES', 'value': str(pool.pods)}, {'name': 'LM_PROCESS', 'valueFrom': index}]
