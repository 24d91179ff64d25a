"""launch/tpu.py against a stand-in for gcloud that runs the workers' commands on this machine and fails on demand."""
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOCAL = '#!/bin/bash\n[[ $1 != true ]] || { echo installed >>~/installed; exit; }\nexec "$@"\n'


class Cloud:
    """A project with the launchers, on a PATH whose gcloud is the stand-in, and what the stand-in was asked."""

    def __init__(self, folder):
        self.folder, self.project, tools = folder / 'cloud', folder / 'project', folder / 'bin'
        for made in (self.folder, self.project, tools):
            made.mkdir()
        shutil.copytree(ROOT / 'launch', self.project / 'launch')
        (self.project / 'launch' / 'local.sh').write_text(LOCAL)
        (self.project / 'data.txt').write_text('here')
        subprocess.run(['git', 'init', '-q', self.project], check=True)
        (tools / 'gcloud').write_text(f'#!/bin/bash\nexec {sys.executable} -S {ROOT}/tests/cloud.py "$@"\n')
        (tools / 'gcloud').chmod(0o755)
        self.environ = {**os.environ, 'PATH': f'{tools}:{os.environ["PATH"]}', 'FAKE': str(self.folder)}

    def start(self, *words):
        return subprocess.Popen([sys.executable, self.project / 'launch' / 'tpu.py', *words], cwd=self.project,
                                env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *words, poll='0.05'):
        process = self.start(*words[:1], f'--poll={poll}', *words[1:])
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def faults(self, *faults):
        (self.folder / 'faults').write_text(json.dumps(faults))

    def calls(self):
        path = self.folder / 'calls'
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def verbs(self):
        return [words[3] for words in self.calls()]

    def left(self):
        """Whether anything goes on costing."""
        return (self.folder / 'state').exists()


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)


def script(text):
    return ['--', 'bash', '-c', text]


def test_a_run_from_creation_to_deletion(cloud):
    code, out, err = cloud.run('v5e-16', '--hours=2', *script(
        'echo $WORKER; cat data.txt; echo; mkdir -p runs/x; echo $LM_EXTRAS >runs/x/record; exit 3'))
    lines = out.splitlines()
    assert code == 3 and lines[:2] == ['worker-0', 'here']
    assert sum('ended with code 3' in line for line in lines) == 2
    assert '19.20 dollars an hour, 38.40 dollars for 2 hours' in err.splitlines()[0] + err.splitlines()[1]
    [record] = (cloud.project / 'runs' / 'tpu').glob('*/runs/x/record')
    assert record.read_text() == 'tpu\n' and f'the results are in {record.parents[2]}' in err
    assert not cloud.left() and cloud.verbs()[-1] == 'delete'
    create = next(words for words in cloud.calls() if words[3] == 'create')
    assert {'--accelerator-type=v5litepod-16', '--runtime-version=v2-alpha-tpuv5-lite'} < set(create)


def test_the_dry_run_prints_what_would_run_and_calls_nothing(cloud):
    code, out, err = cloud.run('v5p-16', '--slices=2', '--reserved', '--name=mine', '--dry-run', '--', 'lm', 'train')
    assert code == 0 and not cloud.calls() and '8 chips, 2 hosts; 67.20 dollars an hour' in err
    assert '--node-count=2 --node-prefix=mine' in out and '--reserved' in out
    assert re.findall('queued-resources (create|scp|delete)', out) == ['create', 'scp', 'scp', 'delete']


@pytest.mark.parametrize('name, message', [
    ('auth', 'gcloud is not logged in; run gcloud auth login'),
    ('project', 'no Google Cloud project is chosen; add --project=NAME'),
    ('quota', 'the quota does not cover it; ask for more'),
    ('disabled', 'run gcloud services enable tpu.googleapis.com'),
])
def test_what_the_user_must_mend_is_one_line(cloud, name, message):
    cloud.faults(('create', name))
    code, _, err = cloud.run('v5e-16', '--', 'true')
    assert code == 2 and message in err.splitlines()[-1] and not cloud.left()
    assert 'ssh' not in cloud.verbs()


def test_an_account_that_is_not_logged_in_creates_nothing(cloud):
    cloud.faults(('describe', 'auth'))
    code, _, err = cloud.run('v5e-16', '--', 'true')
    assert code == 2 and 'run gcloud auth login' in err and cloud.verbs() == ['describe']


def test_a_stockout_is_tried_again_until_the_tries_end(cloud):
    cloud.faults(('create', 'stockout'), ('create', 'refused'))
    assert cloud.run('v5e-16', *script('echo ran'))[:2] == (0, 'ran\n')
    cloud.faults(('create', 'stockout'), ('create', 'stockout'))
    code, _, err = cloud.run('v5e-16', '--retries=1', '--', 'true')
    assert code == 2 and 'no more capacity' in err and 'no luck in 2 tries' in err and not cloud.left()


def test_a_preempted_run_starts_again_on_a_new_slice(cloud):
    cloud.faults(('tail -s', 'preempt'))
    kept = cloud.project.parent / 'bucket'
    code, out, err = cloud.run('v5e-16', '--spot', *script(
        f'[[ -e {kept}-$WORKER ]] && echo resumed && exit 0; touch {kept}-$WORKER; echo began; sleep 100'))
    assert code == 0 and out.splitlines()[-1] == 'resumed' and 'was taken away (suspended)' in err
    assert cloud.verbs().count('create') == 2 and not cloud.left()
    assert 'what the command saves is lost when the slice is preempted; try --bucket=NAME' in err


def test_a_lost_connection_is_taken_up_where_it_broke(cloud):
    cloud.faults(('tail -s', 'drop'))
    code, out, err = cloud.run('v5e-16', *script('echo one; echo two; sleep 1.5; echo three'))
    assert (code, out) == (0, 'one\ntwo\nthree\n') and 'the connection is lost; the command goes on' in err
    assert cloud.verbs().count('create') == 1


@pytest.mark.long
def test_a_connection_lost_while_starting_does_not_start_twice(cloud):
    cloud.faults(('echo $! >', 'drop'))
    count = cloud.project.parent / 'count'
    code, out, _ = cloud.run('v5e-16', *script(f'echo $WORKER >>{count}; sleep 2; echo end'))
    assert (code, out) == (0, 'end\n') and sorted(count.read_text().split()) == ['worker-0', 'worker-1']


@pytest.mark.long
def test_a_saved_stop_runs_the_same_line_again(cloud):
    code, out, err = cloud.run('v5e-16', *script('echo run; [[ -e saved ]] && exit 0; touch saved; exit 75'))
    assert (code, out) == (0, 'run\nrun\n') and 'running it again' in err and cloud.verbs().count('create') == 1


@pytest.mark.long
def test_a_restarted_worker_is_replaced(cloud):
    cloud.faults(('tail -s', 'reboot'))
    kept = cloud.project.parent / 'bucket'
    code, _, err = cloud.run('v5e-16', *script(f'[[ -e {kept}-$WORKER ]] && exit 0; touch {kept}-$WORKER; sleep 100'))
    assert code == 0 and 'was restarted under the command; 20 tries left' in err
    assert cloud.verbs().count('create') == 2 and not cloud.left()


@pytest.mark.parametrize('number', [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupt_saves_fetches_and_deletes(cloud, number):
    process = cloud.start('v5e-16', '--poll=0.05', *script(
        'mkdir -p runs; trap "echo saved; echo x >runs/saved; exit 75" TERM; echo ready; while :; do sleep 0.1; done'))
    assert process.stdout.readline() == 'ready\n'
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75 and out == 'saved\n' and 'asking the command to stop' in err
    assert list((cloud.project / 'runs' / 'tpu').glob('*/runs/saved')) and not cloud.left()


@pytest.mark.long
def test_a_lost_launcher_is_taken_up_by_the_same_line(cloud):
    words = script('echo one; while [[ ! -e go ]]; do sleep 0.1; done; echo two')
    process = cloud.start('v5e-16', '--poll=0.05', *words)
    assert process.stdout.readline() == 'one\n'
    process.kill()
    process.communicate()
    again = cloud.start('v5e-16', '--poll=0.05', *words)
    assert again.stdout.readline() == 'one\n'
    for worker in cloud.folder.glob('worker-*'):
        (worker / 'lm' / 'go').touch()
    assert again.communicate(timeout=60)[0] == 'two\n' and again.returncode == 0
    assert cloud.verbs().count('create') == 1


@pytest.mark.long
def test_the_hours_end_the_run(cloud):
    code, out, _ = cloud.run('v5e-16', '--hours=0.0003', *script(
        'trap "echo saved; exit 75" TERM; while :; do sleep 0.1; done'))
    assert code == 75 and out.endswith('saved\n') and not cloud.left()


@pytest.mark.long
def test_keep_keeps_and_says_how_to_delete(cloud):
    code, _, err = cloud.run('v5e-16', '--keep', '--name=mine', '--', 'true')
    assert code == 0 and cloud.left() and 'queued-resources delete mine --force' in err


@pytest.mark.parametrize('words, message', [
    (['v5e-12'], 'v5e-12 does not exist (v5e is counted in chips); try v5e-8 or v5e-16.'),
    (['v5p-12'], 'try v5p-8 or v5p-16.'),
    (['h100-8'], "'h100-8' is no TPU slice; try one of v4-16, v5e-16"),
    (['tpu7x-16'], 'only in GKE; try launch/gke.py tpu7x-16.'),
    (['v5e-16', '--hours=-1'], "'-1' is not a number above 0"),
    (['v5e-16', '--name=My_Run'], '--name=My_Run is not a name there'),
    (['v5e-16', '--spot', '--reserved'], 'not allowed with argument'),
    (['v5e-16', '--bucket=gs://b/x'], '--bucket=gs://b/x is not the name of a bucket; try --bucket=NAME, without gs://.'),
    (['v5e-16', '--fetch=../x'], '--fetch=../x is not a path in the project'),
    (['v5e-１６'], "'v5e-１６' is no TPU slice"), (['v5e-' + '9' * 5000], 'has 5,004 letters; use at most 4,096'),
    (['v5e-' + '9' * 4000], 'is no TPU slice; try one of v4-16'),
    (['v5e-16', '--hours=' + '9' * 5000], 'is not a number above 0'), (['v5e-16', '--gcloud=x'], 'try --x'),
])
def test_a_mistake_is_one_line(cloud, words, message):
    code, out, err = cloud.run(*words, '--', 'true')
    assert len(err) < 1200
    assert (code, out) == (2, '') and message in err and len(err.splitlines()) == 1 and not cloud.calls()


def test_a_run_directory_that_is_no_folder_is_refused(cloud):
    for words in (['--workdir=gs://b/run'], ['--workdir', 'gs://b/run']):
        code, out, err = cloud.run('v5e-16', '--', 'lm', 'train', 'x.py', *words)
        assert (code, out, len(err.splitlines())) == (2, '', 1) and not cloud.calls()
        assert '--workdir=gs://b/run is not a folder, which a run of lm needs; try --bucket=b before --, and ' \
               '--workdir=/results/run after it.' in err


@pytest.mark.skipif(not os.geteuid(), reason='root may read every file')
def test_a_file_that_cannot_be_read_is_named_and_not_left_out(cloud):
    (cloud.project / 'data.txt').chmod(0)
    code, _, err = cloud.run('v5e-16', '--', 'true')
    assert code == 2 and 'data.txt cannot be read, and would not be copied; chmod +r it' in err and not cloud.left()


def test_a_command_reaches_the_workers_up_to_the_size_of_one_argument(cloud):
    printed = shlex.split(cloud.run('v5e-16', '--dry-run', '--', 'echo', 'x')[1].replace(';', ' '))
    start = next(word for word in printed if word.startswith('--command=') and 'setsid' in word)
    room = 122_880 - (len(start) - len('--command=') + 2 * 18) + 1  # a dry run's token has 1 digit, and a real one 19
    code, out, err = cloud.run('v5e-16', '--', 'echo', 'x' * room)
    assert (code, out) == (0, 'x' * room + '\n'), err
    sent = next(word for words in cloud.calls() for word in words if 'setsid' in word)
    assert len(sent) == 122_880 + len('--command=')
    (cloud.folder / 'calls').unlink()
    code, out, err = cloud.run('v5e-16', '--', 'echo', 'x' * (room + 1))
    assert (code, out) == (2, '') and len(err.splitlines()) == 1 and not cloud.calls()
    assert 'the command, quoted for the workers, takes 122,881 bytes as one argument, and at most 122,880' in err


@pytest.mark.parametrize('state', ['ACTIVE', 'SUSPENDED'])
def test_a_slice_that_others_have_created_is_neither_used_nor_deleted(cloud, state):
    (cloud.folder / 'state').write_text(state)
    (cloud.folder / 'description').write_text('production')
    code, out, err = cloud.run('v5e-16', '--name=prod', '--', 'true')
    assert (code, out) == (2, '') and 'prod exists and was not created by tpu.py; try another --name' in err
    assert cloud.left() and cloud.verbs() == ['describe']


def test_results_replace_nothing_here(cloud):
    (cloud.project / 'runs' / 'x').mkdir(parents=True)
    (cloud.project / 'runs' / 'x' / 'record').write_text('dear')
    (cloud.project / '.gitignore').write_text('runs\n')
    code, _, err = cloud.run('v5e-16', '--fetch=runs', '--fetch=a/x', *script(
        'mkdir -p runs/x a/x; echo new >runs/x/record; echo other >a/x/record'))
    assert code == 0 and (cloud.project / 'runs' / 'x' / 'record').read_text() == 'dear', err
    made = {str(path.relative_to(cloud.project / 'runs' / 'tpu')).partition('/')[2]: path.read_text()
            for path in (cloud.project / 'runs' / 'tpu').rglob('record')}
    assert made == {'runs/x/record': 'new\n', 'a/x/record': 'other\n'}


def test_the_bucket_is_a_folder_of_every_worker(cloud):
    for name, text in (('mountpoint', 'exit 1'), ('sudo', 'echo "$*" >>$FAKE/sudo-$WORKER'), ('gcsfuse', '')):
        (cloud.project.parent / 'bin' / name).write_text(f'#!/bin/bash\n{text}\n')
        (cloud.project.parent / 'bin' / name).chmod(0o755)
    code, _, err = cloud.run('v5e-16', '--bucket=mine', '--', 'true')
    assert code == 0, err
    for worker in ('worker-0', 'worker-1'):
        assert (cloud.folder / f'sudo-{worker}').read_text() == (
            'mkdir -p /results\ngcsfuse -o allow_other --implicit-dirs --file-mode=666 --dir-mode=777 mine /results\n')


def test_without_gcloud_it_says_where_to_get_it(cloud):
    tools = cloud.project.parent / 'none'
    tools.mkdir()
    cloud.environ['PATH'] = str(tools)
    code, _, err = cloud.run('v5e-16', '--', '/bin/true')
    assert code == 2 and "no command 'gcloud' on PATH; install it from" in err


@pytest.mark.long
@pytest.mark.skipif(not shutil.which('gcloud'), reason='gcloud is not installed')
def test_the_real_gcloud_takes_every_command(cloud, tmp_path):
    """It is logged out and may not look for an account, so that it stops where it would begin."""
    words = ['v5e-16', '--slices=2', '--spot', '--bucket=mine', '--project=none', '--dry-run', '--', 'true']
    lines = cloud.run(*words)[1].strip()
    lines = re.split('\n(?=gcloud|cd /|mkdir)', lines)
    environ = {**os.environ, 'CLOUDSDK_CONFIG': str(tmp_path / 'config'), 'CLOUDSDK_CORE_CHECK_GCE_METADATA': 'false'}
    commands = [line for line in lines if line.startswith('gcloud')]
    assert len(commands) == 11
    for command in commands:
        done = subprocess.run(command, shell=True, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 1 and 'active account selected' in done.stderr, (command, done.stderr)
