"""launch/gke.py: its objects against the published JobSet API, and its talk with stand-ins for kubectl and xpk."""
import base64
import io
import json
import os
import pathlib
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
        [[ $state = none ]] || printf '{"status": {"terminalState": "%s"}}' "$state" ;;
    *"get pods"*) printf '{"items": [{"metadata": {"name": "pod-0", "uid": "u"}, "status": {"phase": "Running",
        "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}}]}' ;;
    *"logs --follow"*) echo "output of worker 0" ;;
    *"logs --tail"*) echo "KeyError: x" ;;
    *apply*) cat >"$FAKE/manifest" ;;
esac
'''


class Cluster:
    """A project with the launchers, on a PATH with stand-ins for kubectl and xpk."""

    def __init__(self, folder):
        self.folder, self.project, tools = folder / 'cluster', folder / 'project', folder / 'bin'
        for made in (self.folder, self.project, tools):
            made.mkdir()
        shutil.copytree(ROOT / 'launch', self.project / 'launch', ignore=shutil.ignore_patterns('__pycache__'))
        (self.project / 'launch' / 'local.sh').write_text('#!/bin/bash\necho "through local.sh: $*"\n')
        subprocess.run(['git', 'init', '-q', self.project], check=True)
        for tool, text in (('kubectl', KUBECTL), ('xpk', '#!/bin/bash\nprintf "%s\\n" "$@"; exit 4\n')):
            (tools / tool).write_text(text)
            (tools / tool).chmod(0o755)
        self.environ = {**os.environ, 'PATH': f'{tools}:{os.environ["PATH"]}', 'FAKE': str(self.folder)}

    def start(self, *words):
        return subprocess.Popen([sys.executable, self.project / 'launch' / 'gke.py', *words], cwd=self.project,
                                env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *words, states=()):
        (self.folder / 'states').write_text(''.join(f'{state}\n' for state in states))
        out, err = (process := self.start(*words)).communicate(timeout=60)
        return process.returncode, out, err

    def objects(self, *words):
        """Returns (ConfigMap, JobSet) that a dry run prints."""
        code, out, err = self.run(*words[:1], '--dry-run', *words[1:])
        assert code == 0, err
        return json.loads(out.split('"END"\n')[1].rsplit('\nEND', 1)[0])['items']

    def calls(self):
        path = self.folder / 'calls'
        return path.read_text().splitlines() if path.exists() else []


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
    held, made = cluster.objects(shape, *options, '--', 'lm', 'train', 'a b')
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
    assert held['metadata']['name'] == pod['volumes'][0]['configMap']['name']
    tpu = 'gke-tpu-topology' in labels
    assert ('ulimit -l' in container['command'][2], 'securityContext' in container) == (tpu, tpu)


def test_a_run_that_stopped_and_saved_starts_again_whatever_the_limit(cluster):
    spec = cluster.objects('v5e-16', '--', 'lm')[1]['spec']
    rules = spec['replicatedJobs'][0]['template']['spec']['podFailurePolicy']['rules']
    assert rules[0]['onExitCodes']['values'] == [75] and rules[1]['onPodConditions'][0]['type'] == 'DisruptionTarget'
    assert spec['failurePolicy']['rules'][0]['action'] == 'RestartJobSetAndIgnoreMaxRestarts'


def test_gpu_nodes_know_their_place_and_tpus_are_told_by_gke(cluster):
    def environment(*words):
        spec = cluster.objects(*words, '--', 'lm')[1]['spec']['replicatedJobs'][0]['template']['spec']['template']
        return {one['name']: one.get('value') for one in spec['spec']['containers'][0]['env']}
    assert environment('h100-16', '--name=x') == {
        'LM_COORDINATOR': 'x-worker-0-0.x:8476', 'LM_PROCESSES': '2', 'LM_PROCESS': None}
    assert environment('h100-8') == {} and environment('v5e-16') == {'LM_EXTRAS': 'tpu'}


def test_the_code_goes_along_and_the_container_runs_the_command(cluster, tmp_path):
    (cluster.project / '.gitignore').write_text('big\n')
    for name in ('big', 'plot.png', 'experiments/page.html', 'lm/page.html'):
        (cluster.project / name).parent.mkdir(exist_ok=True)
        (cluster.project / name).write_text('x')
    held, made = cluster.objects('v5e-16', '--', 'no-lm', 'train', 'a  b')
    code = base64.b64decode(held['binaryData']['code.tgz'])
    names = tarfile.open(fileobj=io.BytesIO(code)).getnames()
    assert {'launch/gke.py', 'lm/page.html'} <= set(names)
    assert not {'big', 'plot.png', 'experiments/page.html'} & set(names)
    (tmp_path / 'code').mkdir()
    (tmp_path / 'code' / 'code.tgz').write_bytes(code)
    pod = made['spec']['replicatedJobs'][0]['template']['spec']['template']['spec']
    script = pod['containers'][0]['command'][2].replace('/code/', f'{tmp_path}/code/').replace('/lm', f'{tmp_path}/lm')
    (cluster.project / 'launch' / 'local.sh').chmod(0o755)
    done = subprocess.run(['bash', '-c', script.replace('exec launch', 'exec bash launch')], capture_output=True,
                          text=True, check=True)
    assert done.stdout == 'through local.sh: no-lm train a  b\n'


def test_code_that_a_configmap_cannot_hold_is_refused(cluster):
    (cluster.project / 'data.bin').write_bytes(os.urandom(2 ** 20))
    code, _, err = cluster.run('v5e-16', '--', 'lm')
    assert code == 2 and 'MiB packed, and a ConfigMap holds 1 MiB; leave large files out' in err


def test_a_run_is_applied_followed_and_gives_its_exit_code(cluster):
    words = ['v5e-16', '--poll=0.05', '--namespace=mine', '--', 'lm']
    code, out, err = cluster.run(*words, states=['none', '', 'Completed'])
    assert (code, out) == (0, 'output of worker 0\n') and '19.20 dollars an hour' in err
    assert json.loads((cluster.folder / 'manifest').read_text())['items'][1]['kind'] == 'JobSet'
    assert all(call.startswith('--namespace=mine ') for call in cluster.calls())
    code, _, err = cluster.run('v5e-16', '--poll=0.05', '--', 'lm', states=['none', '', 'Failed'])
    assert code == 3 and 'pod-0 ended with code 3' in err and 'KeyError: x' in err


def test_the_same_line_watches_a_run_under_way_and_replaces_one_that_ended(cluster):
    err = cluster.run('v5e-16', '--poll=0.05', '--', 'lm', states=['', 'Completed'])[2]
    assert 'is running already; watching it' in err and not any('apply' in call for call in cluster.calls())
    cluster.run('v5e-16', '--detach', '--', 'lm', states=['Failed'])
    assert [call.split()[0] for call in cluster.calls()[-3:]] == ['get', 'delete', 'apply']


def test_an_interrupt_leaves_the_run_alone(cluster):
    (cluster.folder / 'states').write_text('none\n' + '\n' * 1000)
    process = cluster.start('v5e-16', '--poll=0.05', '--', 'lm')
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
    code, _, err = cluster.run('h100-8', '--', 'lm')
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
    assert "no command 'kubectl' on PATH; run gcloud components install kubectl" in cluster.run('v5e-16', '--', 'lm')[2]
    assert "no command 'xpk' on PATH; run pip install xpk" in cluster.run('v5e-16', '--xpk=c', '--', 'lm')[2]
