"""launch/slurm.py: the job it writes, with a stand-in for Slurm; and (-m slurm) on a real Slurm on this machine."""
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import launches
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
CLUSTER = ROOT / 'tests' / 'slurm' / 'cluster'
STAND_IN = '''#!/bin/bash
echo "$(basename "$0") $*" >>"$FAKE_LOG"
case $(basename "$0") in
    sbatch) [[ -z ${FAKE_REFUSAL:-} ]] || { printf '%s\\n' "$FAKE_REFUSAL" >&2; exit 1; }; echo "42;there" ;;
    sinfo) printf '%s\\n' long short short ;;
    squeue) state=$(head -n 1 "$FAKE_STATES"); sed -i 1d "$FAKE_STATES"; echo "$state" ;;
esac
'''
REFUSED = 'sbatch: error: Batch job submission failed: Requested node configuration is not available'
COLLECTIVE = '''
import jax
jax.distributed.initialize()
from jax.experimental import multihost_utils
print('sum', multihost_utils.process_allgather(jax.numpy.array(jax.process_index() + 1)).sum())
'''


def start(*words, cwd, **environ):
    return subprocess.Popen([sys.executable, str(ROOT / 'launch' / 'slurm.py'), *words], cwd=cwd, text=True,
                            env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def launch(*words, cwd, **environ):
    """Returns (exit code, standard output, standard error)."""
    process = start(*words, cwd=cwd, **environ)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


@pytest.fixture
def tools(tmp_path):
    """Returns the settings of a machine whose sbatch, squeue, scancel and sinfo write down how they are called."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    for tool in ('sbatch', 'squeue', 'scancel', 'sinfo'):
        (folder / tool).write_text(STAND_IN)
        (folder / tool).chmod(0o755)
    (tmp_path / 'states').write_text('42 PENDING 0\n42 RUNNING 0\n42 COMPLETED 0\n')
    return {'PATH': f'{folder}:{os.environ["PATH"]}', 'FAKE_LOG': str(tmp_path / 'calls'),
            'FAKE_STATES': str(tmp_path / 'states')}


def test_the_job_asks_for_what_the_options_say(tmp_path):
    code, out, _ = launch('--nodes=2', '--gpus=8', '--time=4:00:00', '--partition=long', '--sbatch=--account=me',
                          '--dry-run', '--', 'echo', 'a b', cwd=tmp_path)
    lines = out.splitlines()
    assert code == 0 and not list(tmp_path.iterdir())
    for setting in ('nodes=2', 'gpus-per-node=8', 'ntasks-per-node=8', 'time=4:00:00', 'partition=long', 'account=me',
                    'requeue', 'signal=TERM@120'):
        assert f'#SBATCH --{setting}' in lines
    assert next(line for line in lines if line.startswith('srun')).endswith(".%t.log -- echo 'a b'")


def test_what_the_dry_run_prints_is_what_is_submitted(tmp_path, tools):
    words = ['--poll=0.01', '--logs=logs', '--nodes=2', '--', 'bash', '-c', 'echo "$1" \'x\'', 'two  words', '']
    _, printed, _ = launch('--dry-run', *words, cwd=tmp_path, **tools)
    assert launch(*words, cwd=tmp_path, **tools)[0] == 0
    submitted = (tmp_path / 'logs' / 'job.sh').read_text()
    assert submitted in printed and subprocess.run(['bash', '-n'], input=submitted, text=True, check=True)
    assert (tmp_path / 'calls').read_text().splitlines()[0] == f'sbatch --parsable {tmp_path}/logs/job.sh'


def test_the_index_of_an_array_reaches_the_command(tmp_path):
    _, out, _ = launch('--array=0-1', '--dry-run', '--', 'printf', '%s,', "it's %a", '--dir=a b/%a/%a', cwd=tmp_path)
    command = re.search(r'%t\.log -- (printf .*)', out)[1]
    done = subprocess.run(['bash', '-c', command], env={'SLURM_ARRAY_TASK_ID': '7'}, text=True, capture_output=True,
                          check=True)
    assert done.stdout == "it's 7,--dir=a b/7/7,"


@pytest.mark.parametrize('state, code', [('COMPLETED 0', 0), ('FAILED 768', 3), ('FAILED 3:0', 3), ('FAILED 9', 137),
                                         ('CANCELLED 0', 1), ('TIMEOUT 0', 1), ('FAILED 19200', 75)])
def test_the_end_of_the_job_gives_the_exit_code(tmp_path, tools, state, code):
    (tmp_path / 'states').write_text(f'42 RUNNING 0\n42 {state}\n')
    assert launch('--poll=0.01', '--', 'true', cwd=tmp_path, **tools)[0] == code


def test_a_detached_launch_prints_the_job(tmp_path, tools):
    assert launch('--detach', '--', 'true', cwd=tmp_path, **tools)[:2] == (0, '42\n')


def test_an_interrupt_leaves_the_job_alone(tmp_path, tools):
    (tmp_path / 'states').write_text('42 RUNNING 0\n' * 1000)
    process = start('--', 'true', cwd=tmp_path, **tools)
    while 'squeue' not in ((tmp_path / 'calls').read_text() if (tmp_path / 'calls').exists() else ''):
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 130 and 'job 42, which goes on; to stop it: scancel 42' in err
    assert 'scancel' not in (tmp_path / 'calls').read_text()


@pytest.mark.parametrize('words, message', [
    (['--array=0-3', '--', 'lm', 'train'], '--array=0-3 would run the same line several times at once; put %a where'),
    (['--', 'lm', 'seed=%a'], '%a stands for the index of an array, and there is none; try --array=0-3.'),
    (['--sbatch=account=me', '--', 'true'], "argument --sbatch: 'account=me' is not an option; try --account=me"),
    (['--nodes=two', '--', 'true'], "'two' is not a whole number of at least 1"),
    (['--nodes=2'], 'put it after --'),
])
def test_a_mistake_is_one_line(tmp_path, words, message):
    code, out, err = launch(*words, cwd=tmp_path)
    assert (code, out) == (2, '') and re.fullmatch(r'slurm\.py: .*\n', err) and message in err


@pytest.mark.parametrize('refusal, message', [
    ('sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job submission failed: Invalid partition',
     'Slurm refuses the job: invalid partition specified: nope; its partitions are long, short.'),
    (REFUSED, 'Requested node configuration is not available; see sinfo'),
    ('sbatch: error: fetch_config: DNS SRV lookup failed\nsbatch: fatal: Could not establish a configuration source',
     'no Slurm answers here (Could not establish a configuration source); run this on a login node'),
])
def test_a_refused_job_says_why(tmp_path, tools, refusal, message):
    code, _, err = launch('--', 'true', cwd=tmp_path, **tools, FAKE_REFUSAL=refusal)
    assert code == 2 and message in err and len(err.splitlines()) == 1


def test_without_slurm_it_says_where_to_run(tmp_path):
    (tmp_path / 'env').symlink_to(shutil.which('env'))
    code, _, err = launch('--', '/bin/true', cwd=tmp_path, PATH=str(tmp_path))
    assert code == 2 and "no command 'sbatch' on PATH; run this where Slurm is installed" in err


def test_a_batch_script_is_submitted_up_to_the_size_that_slurm_takes(tmp_path, tools):
    parts = ['x' * 100_000] * 10
    words = ['--detach', '--logs=logs', '--', 'true', *parts]
    _, printed, _ = launch('--dry-run', *words, '', cwd=tmp_path, **tools)
    empty = len(re.search('<<"END"\n(.*)END\n', printed, re.DOTALL)[1]) - len("''")
    assert launch(*words, 'x' * (2 ** 20 - empty), cwd=tmp_path, **tools)[:2] == (0, '42\n')
    assert (tmp_path / 'logs' / 'job.sh').stat().st_size == 2 ** 20
    (tmp_path / 'calls').unlink()
    code, out, err = launch(*words, 'x' * (2 ** 20 - empty + 1), cwd=tmp_path, **tools)
    assert (code, out) == (2, '') and len(err.splitlines()) == 1 and not (tmp_path / 'calls').exists()
    assert 'the batch script takes 1,048,577 bytes, and Slurm takes 1,048,576; move settings' in err


def test_a_script_of_the_users_own_is_not_replaced(tmp_path, tools):
    for name in ('job.sh', 'fifo', 'ours'):
        (tmp_path / name).mkdir()
    (tmp_path / 'job.sh' / 'job.sh').write_text('#!/bin/bash\n#SBATCH --job-name=thesis\n')
    os.mkfifo(tmp_path / 'fifo' / 'job.sh')
    for name in ('job.sh', 'fifo'):
        code, out, err = launch('--detach', f'--logs={name}', '--', 'true', cwd=tmp_path, **tools)
        assert (code, out, len(err.splitlines())) == (2, '', 1) and 'was not written by slurm.py; choose another' in err
    assert 'thesis' in (tmp_path / 'job.sh' / 'job.sh').read_text() and not (tmp_path / 'calls').exists()
    for _ in range(2):
        assert launch('--detach', '--logs=ours', '--', 'true', cwd=tmp_path, **tools)[:2] == (0, '42\n')


def test_a_job_that_slurm_has_forgotten_is_not_said_to_have_succeeded(tmp_path, tools):
    (tmp_path / 'states').write_text('')
    code, _, err = launch('--poll=0.01', '--', 'true', cwd=tmp_path, **tools)
    assert code == 1 and 'job 42 is forgotten' in err


def lacking():
    """Returns what this machine lacks to start a Slurm of its own, or None."""
    programs = f'{os.environ["PATH"]}:/usr/sbin'
    missing = [tool for tool in ('slurmctld', 'slurmd', 'munged', 'srun') if not shutil.which(tool, path=programs)]
    if missing:
        return f'{", ".join(missing)} missing; apt install slurm-wlm munge'
    return 'only root can start a Slurm here' if os.geteuid() else None


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    """Returns the settings with which commands reach a Slurm of two nodes, which lives as long as this file's tests."""
    if lacking():
        pytest.skip(lacking())
    folder = tmp_path_factory.mktemp('slurm')
    subprocess.run([CLUSTER, 'start', folder], check=True)
    yield {'SLURM_CONF': str(folder / 'slurm.conf'), 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': str(ROOT),
           'XLA_FLAGS': '--xla_force_host_platform_device_count=1', 'LM_CACHE': str(folder / 'cache'),
           'JAX_COMPILATION_CACHE_DIR': str(folder / 'compiled'), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
    subprocess.run([CLUSTER, 'stop', folder], check=True)


def control(settings, *words):
    return subprocess.run(words, env={**os.environ, **settings}, check=True, capture_output=True, text=True).stdout


def train(folder, name):
    return [sys.executable, '-m', 'lm', 'train', str(ROOT / 'experiments' / 'tiny.py'), f'--workdir={folder / name}',
            'model.depth=1', 'model.width=32', 'steps=120', 'cadence.log=1', 'cadence.save=60', 'data.batch=4',
            'data.context=32']


def losses(workdir):
    path = workdir / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith('}')]
    return {record['step']: record['loss'] for record in records if 'loss' in record}


@pytest.mark.slurm
def test_slurm_two_nodes_reach_each_other_through_jax(tmp_path, slurm):
    code, out, err = launch('--poll=0.5', '--nodes=2', '--', sys.executable, '-c', COLLECTIVE, cwd=tmp_path, **slurm)
    assert code == 0 and 'sum 3\n' in out, err


@pytest.mark.slurm
def test_slurm_a_failing_task_is_named_and_shown(tmp_path, slurm):
    text = 'import os\nif os.environ["SLURM_PROCID"] == "1":\n  {}["x"]'
    code, _, err = launch('--poll=0.5', '--nodes=2', '--', sys.executable, '-c', text, cwd=tmp_path, **slurm)
    assert code == 1 and 'task 1 on lm-n2: Exited with exit code 1' in err and "KeyError: 'x'" in err


@pytest.mark.slurm
def test_slurm_an_array_runs_every_index(tmp_path, slurm):
    code, out, _ = launch('--poll=0.5', '--array=0-2', '--', 'bash', '-c', 'echo index %a; exit %a', cwd=tmp_path,
                          **slurm)
    assert code == 2 and sorted(re.findall(r'_(\d)\] index (\d)', out)) == [('0', '0'), ('1', '1'), ('2', '2')]


@pytest.mark.slurm
def test_slurm_takes_hostile_names_folders_and_words_letter_by_letter(tmp_path, slurm):
    name, logs = 'a  b "c" \'d\' $(touch canary) `e` \\ %j #f ö', 'a  b "c" \'d\' $(touch canary) `e` %j #f ö'
    words = [word for word in launches.HOSTILE if '\r\n' not in word]
    place = tmp_path / logs
    place.mkdir()
    line = ['--poll=0.5', '--nodes=2', f'--name={name}', f'--sbatch=--comment={name}', f'--logs={logs}', '--',
            sys.executable, '-c', 'import sys; print(ascii(sys.argv[1:]))', *words]
    code, out, err = launch(*line, cwd=place, **slurm)
    assert (code, out) == (0, f'{words!a}\n'), err
    job = re.search(r'job (\d+) is submitted', err)[1]
    names = sorted(path.name for path in (place / logs).iterdir())
    assert names == [f'{job}.0.log', f'{job}.1.log', f'{job}.out', 'job.sh']
    details = control(slurm, 'scontrol', 'show', 'job', job)
    assert f'JobName={name}\n' in details and f'Comment={name} \n' in details
    assert not list(tmp_path.rglob('canary'))


@pytest.mark.slurm
def test_slurm_follows_the_options_and_not_the_variables_of_another_job(tmp_path, slurm):
    odd = {'SBATCH_JOB_NAME': 'odd', 'SBATCH_TIMELIMIT': '1', 'SBATCH_OUTPUT': '/dev/null', 'SBATCH_ARRAY_INX': '0-3',
           'SLURM_JOB_ID': '99', 'SLURM_RESTART_COUNT': 'odd', 'SLURM_CPUS_PER_TASK': 'odd', 'SQUEUE_USERS': 'nobody',
           'LM_COORDINATOR': 'odd', 'LM_PROCESSES': '7', 'LM_PROCESS': '6'}
    code, out, err = launch('--poll=0.5', '--time=5', '--nodes=2', '--', 'bash', '-c',
                            'echo $SLURM_JOB_NAME $LM_PROCESSES; exit 3', cwd=tmp_path, **slurm, **odd)
    assert code == 3 and out == 'lm\n', err


@pytest.fixture(scope='module')
def straight(slurm, tmp_path_factory):
    """Returns the losses of a run on two nodes that nobody stops."""
    folder = tmp_path_factory.mktemp('straight')
    code, _, err = launch('--poll=0.5', '--nodes=2', '--', *train(folder, 'run'), cwd=folder, **slurm)
    assert code == 0, err
    return losses(folder / 'run')


@pytest.mark.slurm
@pytest.mark.parametrize('stop', [['scontrol', 'requeue'], ['scancel', '--signal=TERM']])
def test_slurm_a_job_cancelled_mid_run_is_queued_again_and_ends_the_same(tmp_path, slurm, straight, stop):
    process = start('--poll=0.5', '--logs=logs', '--nodes=2', '--', *train(tmp_path, 'run'), cwd=tmp_path, **slurm)
    while len(losses(tmp_path / 'run')) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    job = control(slurm, 'squeue', '-h', '-o', '%i').split()[0]
    control(slurm, *stop, job)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0 and 'stopped and saved' in out, err
    details = control(slurm, 'scontrol', 'show', 'job', job)
    assert 'Restarts=1' in details, details
    assert len(straight) == 120 and losses(tmp_path / 'run') == straight
