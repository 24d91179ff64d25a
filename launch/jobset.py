"""The Kubernetes objects of a run in GKE: a ConfigMap with the code, and a JobSet that runs a command beside it.

The fields are those of jobset.x-k8s.io/v1alpha2 (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/); labels
of nodes: https://cloud.google.com/kubernetes-engine/docs/how-to/tpu-multislice and .../how-to/gpus; locked memory, in
which a TPU's driver moves what goes to and from the host: .../how-to/tpus#privileged-mode.
"""

import base64
from collections import namedtuple

import shell

PORT = 8476
# A pool of nodes: labels that choose it, the resource a pod asks for and how much, pods of a job, and jobs.
Pool = namedtuple('Pool', 'labels resource amount pods jobs')
GPUS = {'a100-40g': 'nvidia-tesla-a100', 'a100': 'nvidia-a100-80gb', 'h100': 'nvidia-h100-80gb',
        'h100-mega': 'nvidia-h100-mega-80gb', 'h200': 'nvidia-h200-141gb', 'b200': 'nvidia-b200'}
NODE = 8  # GPUs of a node
# Unpacks the code and becomes the command, so that a request to stop reaches it. GKE mounts the NVIDIA driver.
LOCKED = 'ulimit -l 68719476736\n'
SCRIPT = '''mkdir -p /lm && tar xzf /code/code.tgz -C /lm && cd /lm
export PATH=$PATH:/usr/local/nvidia/bin LD_LIBRARY_PATH=/usr/local/nvidia/lib64:${{LD_LIBRARY_PATH:-}} PYTHONPATH=/lm
command -v {program} >/dev/null || exec launch/local.sh {command}
exec {command}'''


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


def objects(name, pool, options, command, code):
    """Returns the List of the ConfigMap and the JobSet; `code` is the project as the bytes of a tar.gz."""
    if len(code) > 2 ** 20:
        raise shell.Fault(f'the code takes {len(code) / 2 ** 20:.1f} MiB packed, and a ConfigMap holds 1 MiB; leave '
                          'large files out of the repository, or name them in .gitignore, and read data from a bucket.')
    held = {'apiVersion': 'v1', 'kind': 'ConfigMap', 'metadata': {'name': f'{name}-code'},
            'binaryData': {'code.tgz': base64.b64encode(code).decode()}}
    return {'apiVersion': 'v1', 'kind': 'List', 'items': [held, jobset(name, pool, options, command)]}


def jobset(name, pool, options, command):
    metadata = {'name': name}
    if pool.resource == 'google.com/tpu' and pool.pods > 1:  # a slice of several hosts is a node pool of its own
        metadata['annotations'] = {'alpha.jobset.sigs.k8s.io/exclusive-topology': 'cloud.google.com/gke-nodepool'}
    if options.queue:
        metadata['labels'] = {'kueue.x-k8s.io/queue-name': options.queue}
    return {
        'apiVersion': 'jobset.x-k8s.io/v1alpha2', 'kind': 'JobSet', 'metadata': metadata,
        'spec': {
            'ttlSecondsAfterFinished': 24 * 3600,
            'failurePolicy': {'maxRestarts': options.restarts, 'rules': [
                {'name': 'stoppedAndSaved', 'action': 'RestartJobSetAndIgnoreMaxRestarts',
                 'onJobFailureReasons': ['PodFailurePolicy']}]},
            'replicatedJobs': [{'name': 'worker', 'replicas': pool.jobs,
                                'template': {'spec': job(name, pool, options, command)}}]}}


def job(name, pool, options, command):
    """Returns the job of one slice, which fails with PodFailurePolicy where running it again goes on."""
    return {
        'parallelism': pool.pods, 'completions': pool.pods, 'completionMode': 'Indexed', 'backoffLimit': 0,
        'podFailurePolicy': {'rules': [
            {'action': 'FailJob', 'onExitCodes': {'containerName': 'lm', 'operator': 'In', 'values': [shell.STOPPED]}},
            {'action': 'FailJob', 'onPodConditions': [{'type': 'DisruptionTarget', 'status': 'True'}]}]},
        'template': {'spec': pod(name, pool, options, command)}}


def pod(name, pool, options, command):
    spot = {'cloud.google.com/gke-spot': 'true'} if options.spot else {}
    tolerated = [pool.resource, *spot]
    tpu = pool.resource == 'google.com/tpu'
    script = SCRIPT.format(program=shell.shown(command[:1]), command=shell.shown(command))
    spec = {
        'restartPolicy': 'Never', 'terminationGracePeriodSeconds': 120, 'nodeSelector': {**pool.labels, **spot},
        'tolerations': [{'key': key, 'operator': 'Exists'} for key in tolerated],
        'volumes': [{'name': 'code', 'configMap': {'name': f'{name}-code'}},
                    {'name': 'memory', 'emptyDir': {'medium': 'Memory'}}],
        'containers': [{
            'name': 'lm', 'image': options.image, 'env': environment(name, pool),
            'command': ['bash', '-c', LOCKED + script if tpu else script],
            **({'securityContext': {'capabilities': {'add': ['SYS_RESOURCE']}}} if tpu else {}),
            'resources': {'limits': {pool.resource: pool.amount}},
            'volumeMounts': [{'name': 'code', 'mountPath': '/code'}, {'name': 'memory', 'mountPath': '/dev/shm'}]}]}
    if options.account:
        spec['serviceAccountName'] = options.account
    return spec


def environment(name, pool):
    """Returns the variables of a container; GKE itself tells those on TPUs their place."""
    if pool.resource == 'google.com/tpu':
        return [{'name': 'LM_EXTRAS', 'value': 'tpu'}]
    if pool.pods == 1:
        return []
    index = {'fieldRef': {'fieldPath': "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    return [{'name': 'LM_COORDINATOR', 'value': f'{name}-worker-0-0.{name}:{PORT}'},
            {'name': 'LM_PROCESSES', 'value': str(pool.pods)}, {'name': 'LM_PROCESS', 'valueFrom': index}]
