"""launch/gke.py: its JobSet against the published API, and what it asks stand-ins for kubectl, gcloud and xpk."""
import hashlib
import io
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Answers `get jobset` with the lines of $FAKE/states in turn, and knows one pod.
KUBECTL = r'''#!/bin/bash
echo "$*" >>"$FAKE/calls"
if [[ -e $FAKE/error ]]; then cat "$FAKE/error" >&2; exit 1; fi
case "$*" in
    *"get jobset"*) state=$(head -n 1 "$FAKE/states"); sed -i 1d "$FAKE/states"
        [[ $state = none ]] || printf '{"metadata": {"labels": {%s}}, "status": {"terminalState": "%s"}}' \
            "${LABEL-\"app.kubernetes.io/managed-by\": \"lm-launch-gke\"}" "$state" ;;
    *"get pods"*) printf '{"items": [{"metadata": {"name": "pod-0", "uid": "u"}, "status": {"phase": "Running",
        "containerStatuses": [{"name": "lm", "state": %s}]%s}}]}' "$ENDED" "${INIT:-}" ;;
    *"logs --follow --container=lm"*) echo "output of worker 0" ;;
    *"logs --tail=30 --container=lm"*) echo "KeyError: x" ;;
    *"logs --tail=30 --container=code"*) echo "403 Forbidden" ;;
    *apply*) cat >"$FAKE/manifest" ;;
esac
'''


class Cluster:
    """A project with the launchers, on a PATH with stand-ins for kubectl, gcloud and xpk."""

    def __init__(self, folder):
        self.folder, self.project, tools = folder / 'cluster', folder / 'project', folder / 'bin'
        for made in (self.folder, self.project, tools):
            made.mkdir()
        shutil.copytree(ROOT / 'launch', self.project / 'launch', ignore=shutil.ignore_patterns('__pycache__'))
        (self.project / 'launch' / 'local.sh').write_text('#!/bin/bash\necho "through local.sh: $*"\n')
        subprocess.run(['git', 'init', '-q', self.project], check=True)
        gcloud = f'#!/bin/bash\nexec {sys.executable} -S {ROOT}/tests/cloud.py "$@"\n'
        for tool, text in (('kubectl', KUBECTL), ('gcloud', gcloud),
                           ('xpk', '#!/bin/bash\nprintf "%s\\n" "$@"; exit 4\n')):
            (tools / tool).write_text(text)
            (tools / tool).chmod(0o755)
        self.environ = {**os.environ, 'PATH': f'{tools}:{os.environ["PATH"]}', 'FAKE': str(self.folder),
                        'ENDED': '{"terminated": {"exitCode": 3}}'}

    def start(self, *words):
        return subprocess.Popen([sys.executable, self.project / 'launch' / 'gke.py', *words], cwd=self.project,
                                env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *words, states=()):
        (self.folder / 'states').write_text(''.join(f'{state}\n' for state in states))
        out, err = (process := self.start(*words)).communicate(timeout=60)
        return process.returncode, out, err

    def jobset(self, *words):
        """Returns the JobSet that a dry run prints."""
        code, out, err = self.run(*words[:1], '--dry-run', *words[1:])
        assert code == 0, err
        return json.loads(out.split('"END"\n')[1].rsplit('\nEND', 1)[0])

    def pod(self, *words):
        """Returns the specification of a pod of it."""
        return self.jobset(*words)['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']

    def bucket(self):
        return sorted(path for path in (self.folder / 'buckets').rglob('*') if path.is_file())

    def calls(self):
        path = self.folder / 'calls'
        return path.read_text().splitlines() if path.exists() else []


LM = ('--bucket=bucket', '--', 'lm', '--workdir=/results/run')


@pytest.fixture
def cluster(tmp_path):
    return Cluster(tmp_path)


SHAPES = [
    ('v5e-16', (), {'gke-tpu-accelerator': 'tpu-v5-lite-podslice', 'gke-tpu-topology': '4x4'}, 4, 4),
    ('v5litepod-8', (), {'gke-tpu-accelerator': 'tpu-v5-lite-podslice', 'gke-tpu-topology': '2x4'}, 8, 1),
    ('v6e-256', ('--slices=2',), {'gke-tpu-accelerator': 'tpu-v6e-slice', 'gke-tpu-topology': '16x16'}, 4, 64),
    ('v5p-512', (), {'gke-tpu-accelerator': 'tpu-v5p-slice', 'gke-tpu-topology': '4x8x8'}, 4, 64),
    ('v4-8', (), {'gke-tpu-accelerator': 'tpu-v4-podslice', 'gke-tpu-topology': '2x2x1'}, 4, 1),
    ('tpu7x-128', (), {'gke-tpu-accelerator': 'tpu7x', 'gke-tpu-topology': '4x4x4'}, 4, 16),
    ('h100-16', ('--spot', '--queue=q', '--account=writer'), {'gke-accelerator': 'nvidia-h100-80gb'}, 8, 2),
    ('h200-4', (), {'gke-accelerator': 'nvidia-h200-141gb'}, 4, 1),
]


@pytest.mark.parametrize('shape, options, labels, amount, pods', SHAPES)
def test_the_objects_fit_the_published_api_and_ask_for_the_right_nodes(cluster, shape, options, labels, amount, pods):
    models = pytest.importorskip('kubeflow_trainer_api.models')
    made = cluster.jobset(shape, *options, *LM, 'a b')
    # What a model does not know it leaves out, so that an unknown field makes the two differ.
    assert models.JobsetV1alpha2JobSetSpec.from_dict(made['spec']).to_dict() == made['spec']
    assert models.IoK8sApimachineryPkgApisMetaV1ObjectMeta.from_dict(made['metadata']).to_dict() == made['metadata']
    assert (made['apiVersion'], made['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    worker = made['spec']['replicatedJobs'][0]
    job, pod = worker['template']['spec'], worker['template']['spec']['template']['spec']
    container = pod['containers'][0]
    assert {f'cloud.google.com/{name}': value for name, value in labels.items()}.items() <= pod['nodeSelector'].items()
    assert list(container['resources']['limits'].values()) == [amount]
    assert job['parallelism'] == job['completions'] == pods
    assert worker['replicas'] == (2 if '--slices=2' in options else 1)
    assert len(f'{made["metadata"]["name"]}-worker-1-{pods}') <= 63
    mounts = [(mount['name'], mount['mountPath']) for mount in container['volumeMounts']]
    assert mounts == [('memory', '/dev/shm'), ('code', '/lm'), ('results', '/results')]
    assert [volume['name'] for volume in pod['volumes']] == ['memory', 'code', 'results']
    assert pod['volumes'][2]['csi']['volumeAttributes']['bucketName'] == 'bucket'
    assert job['template']['metadata']['annotations'] == {'gke-gcsfuse/volumes': 'true'}
    tpu = 'gke-tpu-topology' in labels
    assert ('ulimit -l' in container['command'][2], 'securityContext' in container) == (tpu, tpu)


def test_a_run_that_stopped_and_saved_starts_again_whatever_the_limit(cluster):
    spec = cluster.jobset('v5e-16', *LM)['spec']
    rules = spec['replicatedJobs'][0]['template']['spec']['podFailurePolicy']['rules']
    assert rules[0]['onExitCodes']['values'] == [75] and rules[1]['onPodConditions'][0]['type'] == 'DisruptionTarget'
    assert spec['failurePolicy']['rules'][0]['action'] == 'RestartJobSetAndIgnoreMaxRestarts'


def test_gpu_nodes_know_their_place_and_tpus_are_told_by_gke(cluster):
    def environment(*words):
        return {one['name']: one.get('value') for one in cluster.pod(*words, *LM)['containers'][0]['env']}
    assert environment('h100-16', '--name=x') == {
        'LM_COORDINATOR': 'x-worker-0-0.x:8476', 'LM_PROCESSES': '2', 'LM_PROCESS': None}
    assert environment('h100-8') == {} and environment('v5e-16') == {'LM_EXTRAS': 'tpu'}


def as_kubelet(words):
    """Returns the words of a container's command as Kubernetes starts it: $$ is $, and $(NAME) a variable's value."""
    return [re.sub(r'\$\$|\$\(\w+\)', lambda found: '$' if found[0] == '$$' else 'REPLACED', word) for word in words]


def test_the_pods_fetch_the_code_from_the_bucket_and_run_the_command(cluster, tmp_path):
    (cluster.project / '.gitignore').write_text('big\n')
    for name in ('big', 'plot.png', 'experiments/page.html', 'lm/page.html'):
        (cluster.project / name).parent.mkdir(exist_ok=True)
        (cluster.project / name).write_text('x')
    (cluster.project / 'launch' / 'local.sh').chmod(0o755)
    words = ['v5e-16', '--detach', '--bucket=bucket', '--', 'no-lm', 'a  b', '$(HOME) $$ ${X} "\'']
    assert cluster.run(*words, states=['none'])[0] == 0
    spec = json.loads((cluster.folder / 'manifest').read_text())['spec']
    pod = spec['replicatedJobs'][0]['template']['spec']['template']['spec']
    [fetch], [container] = pod['initContainers'], pod['containers']
    assert fetch['volumeMounts'] == [{'name': 'code', 'mountPath': '/lm'}] and fetch['image'] == 'google/cloud-sdk:slim'
    (tmp_path / 'lm').mkdir()

    def start(container):
        here = [word.replace('/tmp/', f'{tmp_path}/').replace(' /lm', f' {tmp_path}/lm')
                for word in as_kubelet(container['command'])]
        return subprocess.run([word.replace('ulimit -l 68719476736', '') for word in here], capture_output=True,
                              text=True, check=False, env=cluster.environ)

    assert start(fetch).returncode == 0
    assert {'launch', 'lm', '.gitignore'} == {path.name for path in (tmp_path / 'lm').iterdir()}
    assert (tmp_path / 'lm' / 'lm' / 'page.html').exists() and not (tmp_path / 'lm' / 'experiments').exists()
    assert start(container).stdout == 'through local.sh: no-lm a  b $(HOME) $$ ${X} "\'\n'
    [archive] = cluster.bucket()
    archive.write_bytes(archive.read_bytes()[:-1])
    assert start(fetch).returncode != 0


def test_the_archive_is_named_by_its_content_and_uploaded_once(cluster):
    for _ in range(2):
        assert cluster.run('v5e-16', '--detach', *LM, states=['none'])[0] == 0
    os.utime(cluster.project / 'launch' / 'gke.py', (1, 1))
    assert cluster.run('h100-8', '--detach', *LM, states=['none'])[0] == 0
    [archive] = cluster.bucket()
    assert archive == cluster.folder / f'buckets/bucket/lm-code/{hashlib.sha256(archive.read_bytes()).hexdigest()}.tgz'
    (cluster.project / 'new.py').write_text('x = 1')
    err = cluster.run('v5e-16', '--detach', *LM, states=['none'])[2]
    [other] = set(cluster.bucket()) - {archive}
    assert f'sha256 {other.stem}) to gs://bucket/lm-code/{other.stem}.tgz' in err
    assert 'new.py' in tarfile.open(other).getnames() and 'new.py' not in tarfile.open(archive).getnames()


def test_the_dry_run_prints_size_and_sum_of_the_code_and_calls_nothing(cluster):
    (cluster.project / 'big').write_bytes(os.urandom(3_000_000))
    code, out, _ = cluster.run('v5e-16', '--code=gs://mine/code/', '--dry-run', '--', 'lm')
    assert code == 0 and not cluster.calls() and len(out) < 5000
    size, digest = re.search(r'^# the code: (\S+) MB, sha256 ([0-9a-f]{64})$', out, re.MULTILINE).groups()
    upload = re.search('^(.*) >/tmp/lm.tgz\ngcloud storage cp --no-clobber .* /tmp/lm.tgz (.*)$', out, re.MULTILINE)
    packed = subprocess.run(['bash', '-c', upload[1]], stdout=subprocess.PIPE, check=True).stdout
    assert 3.0 < float(size) < 3.1 and digest == hashlib.sha256(packed).hexdigest()
    assert upload[2] == f'gs://mine/code/{digest}.tgz' and upload[2] in out.split('"END"')[1]
    assert 'big' in tarfile.open(fileobj=io.BytesIO(packed)).getnames()


def test_an_image_that_holds_the_project_gets_no_code(cluster):
    code, out, _ = cluster.run('h100-8', '--image=mine', '--code=image', '--dry-run', '--', 'echo', 'a  b')
    assert code == 0 and 'gcloud' not in out and 'the code' not in out
    pod = cluster.pod('h100-8', '--image=mine', '--code=image', '--', 'echo', 'a  b')
    assert 'initContainers' not in pod and [volume['name'] for volume in pod['volumes']] == ['memory']
    done = subprocess.run(as_kubelet(pod['containers'][0]['command']), capture_output=True, text=True, check=True)
    assert done.stdout == 'a  b\n'


@pytest.mark.parametrize('words, place', [
    (['--bucket=one'], 'gs://one/lm-code/'), (['--bucket=one', '--code=gs://two/a/'], 'gs://two/a/')])
def test_the_code_goes_through_the_bucket_or_the_folder_named(cluster, words, place):
    assert cluster.pod('v5e-16', *words, '--', 'lm')['initContainers'][0]['command'][3].startswith(place)


@pytest.mark.parametrize('words', [('v5e-16', '--poll=0.05'), ('v5e-16', '--detach')])
@pytest.mark.parametrize('state', ['', 'Failed', 'Completed'])
def test_what_others_have_created_is_neither_watched_nor_replaced(cluster, words, state):
    cluster.environ['LABEL'] = ''
    code, out, err = cluster.run(*words, '--name=prod', *LM, states=[state])
    assert (code, out) == (2, '') and 'prod exists and was not created by gke.py; try another --name' in err
    assert not any(re.search('apply|delete|storage|logs', call) for call in cluster.calls())


@pytest.mark.parametrize('name, message', [
    ('bucket', 'gs://bucket not found: 404: there is no such bucket; run gcloud storage buckets create'),
    ('denied', 'ask for the role Storage Object User (roles/storage.objectUser)'),
    ('login', 'gcloud is not logged in; run gcloud auth login'),
])
def test_code_that_cannot_be_copied_submits_nothing(cluster, name, message):
    (cluster.folder / 'faults').write_text(json.dumps([['storage cp', name]]))
    code, _, err = cluster.run('h100-8', *LM, states=['Failed'])
    assert code == 2 and message in err.splitlines()[-1] and 'gcloud could not copy the code to gs://bucket' in err
    assert not any('apply' in call or 'delete' in call for call in cluster.calls())


def test_a_pod_that_could_not_fetch_the_code_is_shown(cluster):
    cluster.environ |= {'ENDED': '{}', 'INIT': ', "initContainerStatuses": '
                        '[{"name": "code", "state": {"terminated": {"exitCode": 1}}}]'}
    code, _, err = cluster.run('v5e-16', '--poll=0.05', *LM, states=['none', '', 'Failed'])
    assert code == 1 and 'pod-0 (fetching the code) ended with code 1' in err and '403 Forbidden' in err


def test_a_command_is_submitted_up_to_the_size_that_kubernetes_takes(cluster):
    part = 'x' * 100_000
    empty = len(json.dumps(cluster.jobset('v5e-16', *LM, *[part] * 10, ''), indent=1))
    assert len(json.dumps(cluster.jobset('v5e-16', *LM, *[part] * 10, 'x' * (2 ** 20 - empty)), indent=1)) == 2 ** 20
    code, out, err = cluster.run('v5e-16', *LM, *[part] * 10, 'x' * (2 ** 20 - empty + 1))
    assert (code, out) == (2, '') and len(err.splitlines()) == 2 and not cluster.calls()
    assert 'the JobSet with the command takes 1,048,577 bytes, and Kubernetes takes 1,048,576; move settings' in err


def test_a_command_reaches_xpk_up_to_the_size_of_one_argument(cluster):
    begun = len('LM_EXTRAS=tpu launch/local.sh lm ')
    code, out, _ = cluster.run('v5e-16', '--xpk=c', '--', 'lm', 'x' * (122_880 - begun))
    assert code == 4 and len(next(line for line in out.splitlines() if line.startswith('--command='))) == 122_890
    code, out, err = cluster.run('v5e-16', '--xpk=c', '--', 'lm', 'x' * (122_881 - begun))
    assert (code, out) == (2, '') and 'takes 122,881 bytes as one argument, and at most 122,880 get through' in err


def test_a_run_is_applied_followed_and_gives_its_exit_code(cluster):
    words = ['v5e-16', '--poll=0.05', '--namespace=mine', *LM]
    code, out, err = cluster.run(*words, states=['none', '', 'Completed'])
    assert (code, out) == (0, 'output of worker 0\n') and '19.20 dollars an hour' in err
    assert json.loads((cluster.folder / 'manifest').read_text())['kind'] == 'JobSet'
    assert all(call.startswith('--namespace=mine ') for call in cluster.calls() if 'storage' not in call)
    code, _, err = cluster.run('v5e-16', '--poll=0.05', *LM, states=['none', '', 'Failed'])
    assert code == 3 and 'pod-0 ended with code 3' in err and 'KeyError: x' in err


def test_the_same_line_watches_a_run_under_way_and_replaces_one_that_ended(cluster):
    err = cluster.run('v5e-16', '--poll=0.05', *LM, states=['', 'Completed'])[2]
    assert 'is running already; watching it' in err and not any('apply' in call for call in cluster.calls())
    cluster.run('v5e-16', '--detach', *LM, states=['Failed'])
    assert [re.search('get|storage|delete|apply', call)[0] for call in cluster.calls()[-4:]] == [
        'get', 'storage', 'delete', 'apply']


def test_an_interrupt_leaves_the_run_alone(cluster):
    (cluster.folder / 'states').write_text('none\n' + '\n' * 1000)
    process = cluster.start('v5e-16', '--poll=0.05', *LM)
    assert process.stdout.readline() == 'output of worker 0\n'
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and 'which goes on; to stop it: kubectl delete jobset' in err


@pytest.mark.parametrize('said, message', [
    ('The connection to the server localhost:8080 was refused - did you specify the right host or port?',
     'run gcloud container clusters get-credentials CLUSTER'),
    ('error: the server doesn\'t have a resource type "jobset"', 'the cluster has no JobSet; run kubectl apply'),
    ('error: You must be logged in to the server (Unauthorized)', 'run gcloud auth login'),
    ('Error from server (Forbidden): jobsets is forbidden: User "me" cannot get', 'roles/container.developer'),
])
def test_what_the_user_must_mend_is_one_line(cluster, said, message):
    (cluster.folder / 'error').write_text(said)
    code, _, err = cluster.run('h100-8', *LM)
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_xpk_gets_the_same_run(cluster):
    options = ['--slices=2', '--xpk=mine', '--name=x', '--xpk-option=--zone=z']
    code, out, _ = cluster.run('v5e-16', *options, '--', 'lm', 'a b')
    words = out.splitlines()
    assert code == 4 and words[:2] == ['workload', 'create'] and words[-1] == '--zone=z'
    assert {'--cluster=mine', '--workload=x', '--tpu-type=v5litepod-16', '--num-slices=2', '--restart-on-exit-codes=75',
            "--command=LM_EXTRAS=tpu launch/local.sh lm 'a b'"} < set(words)


@pytest.mark.parametrize('words, message', [
    (['v5e-12'], 'try v5e-8 or v5e-16.'),
    (['h100-12'], 'h100-12 is not a whole number of nodes of 8 GPUs; try h100-8 or h100-16.'),
    (['h100'], "'h100' has no number of GPUs; try h100-8."),
    (['v5e-8', '--slices=2'], 'GKE joins slices of several hosts only, and v5e-8 has one; try v5e-16.'),
    (['v5p-8', '--slices=2'], 'GKE joins slices of several hosts only, and v5p-8 has one; try v5p-16.'),
    (['h100-8', '--slices=2'], '--slices=2 is for TPUs; try h100-16.'),
    (['h100-8', '--xpk=c'], '--xpk is for TPUs here; without it, launch/gke.py h100-8 submits a JobSet itself.'),
    (['v5e-16', '--name=A'], '--name=A is not a name there'),
    (['h100-8', '--code=here'], '--code=here is not a folder in a bucket; try --code=gs://bucket/folder'),
    (['h100-8', '--code=image'], 'the image python:3.12 does not hold the project; name yours with --image=NAME.'),
    (['h100-8'], 'there is no bucket to copy the code through; add --bucket=NAME, or'),
    (['h100-8', '--bucket=gs://b'], '--bucket=gs://b is not the name of a bucket; try --bucket=NAME, without gs://.'),
    (['h100-8', '--xpk-option=x'], "argument --xpk-option: 'x' is not an option; try --x"),
])
def test_a_mistake_is_one_line(cluster, words, message):
    code, out, err = cluster.run(*words, '--', 'lm')
    assert (code, out) == (2, '') and message in err and len(err.splitlines()) == 1 and not cluster.calls()


def test_without_the_tools_it_says_how_to_get_them(cluster, tmp_path):
    (tmp_path / 'bin' / 'kubectl').unlink()
    (tmp_path / 'bin' / 'xpk').unlink()
    for tool in ('git', 'bash', 'sh', 'tar', 'gzip'):
        (tmp_path / 'bin' / tool).symlink_to(shutil.which(tool))
    cluster.environ['PATH'] = str(tmp_path / 'bin')
    assert "no command 'kubectl' on PATH; run gcloud components install kubectl" in cluster.run('v5e-16', *LM)[2]
    assert "no command 'xpk' on PATH; run pip install xpk" in cluster.run('v5e-16', '--xpk=c', '--', 'lm')[2]
