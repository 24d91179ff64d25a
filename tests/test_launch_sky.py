"""launch/sky.yaml: what it runs on a node, and (where SkyPilot is installed) that SkyPilot reads it."""
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import launches
import pytest

yaml = pytest.importorskip('yaml')
ROOT = pathlib.Path(__file__).resolve().parents[1]
TASK = yaml.safe_load((ROOT / 'launch' / 'sky.yaml').read_text())


def on_a_node(folder, gpus, **environ):
    """Returns what the task runs on a node with an nvidia-smi if it has GPUs."""
    shutil.copytree(ROOT / 'launch', folder / 'launch')
    local = (f'[[ $1 != python ]] || exec {sys.executable} "${{@:2}}"\n'
             'printf "%s\\0" "${LM_COORDINATOR:-}" "${LM_PROCESSES:-}" "${LM_PROCESS:-}" "$@"')
    for name, text in (('launch/local.sh', local), *([('nvidia-smi', '')] if gpus else [])):
        (folder / name).write_text(f'#!/bin/bash\n{text}\n')
        (folder / name).chmod(0o755)
    environ = {'PATH': f'{folder}:{os.environ["PATH"]}', 'COMMAND': "lm train 'a  b'", 'SKYPILOT_NODE_RANK': '1',
               'SKYPILOT_NODE_IPS': '10.0.0.4\n10.0.0.5', **environ}
    done = subprocess.run(['bash', '-c', TASK['run']], env=environ, cwd=folder, capture_output=True, check=False)
    return done.returncode, os.fsdecode(done.stdout).split('\0')[:-1], os.fsdecode(done.stderr)


def test_nodes_with_gpus_learn_their_place(tmp_path):
    assert on_a_node(tmp_path, True, SKYPILOT_NUM_NODES='2') == (
        0, ['10.0.0.4:8476', '2', '1', 'lm', 'train', 'a  b'], '')


@pytest.mark.parametrize('gpus, nodes', [(True, '1'), (False, '2')])
def test_one_node_and_tpus_are_told_nothing(tmp_path, gpus, nodes):
    assert on_a_node(tmp_path, gpus, SKYPILOT_NUM_NODES=nodes) == (0, ['', '', '', 'lm', 'train', 'a  b'], '')


def test_the_words_of_the_command_arrive_letter_by_letter(tmp_path):
    words = ['lm', *launches.HOSTILE]
    code, out, _ = on_a_node(tmp_path, False, SKYPILOT_NUM_NODES='1', COMMAND=shlex.join(words))
    assert code == 0 and out[3:] == words and not list(tmp_path.glob('canary*'))


@pytest.mark.parametrize('command, message', [
    ('', 'COMMAND is empty; say what to run'), ("''", 'COMMAND is empty'),
    ("lm 'train", 'no closing quotation; quote its words'),
    ('lm train; touch canary', None), ('lm $(touch canary) `touch canary`', None), ('lm\ntouch canary', None)])
def test_a_command_is_words_and_nothing_else_runs(tmp_path, command, message):
    code, out, err = on_a_node(tmp_path, False, SKYPILOT_NUM_NODES='1', COMMAND=command)
    assert not (tmp_path / 'canary').exists()
    assert (code, out[3:]) == ((2, []) if message else (0, shlex.split(command)))
    assert (message in err and len(err.splitlines()) == 1) if message else err == ''


def test_a_saved_stop_is_recovered():
    assert TASK['resources']['job_recovery']['recover_on_exit_codes'] == [75]


def test_skypilot_reads_it(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    sky = pytest.importorskip('sky')
    task = sky.Task.from_yaml_config(TASK, env_overrides=[('BUCKET', 'mine'), ('COMMAND', 'lm')])
    assert {name for one in task.resources for name in one.accelerators} == {'H200', 'H100', 'A100-80GB', 'tpu-v6e-8'}
    assert task.storage_mounts['/results'].name == 'mine'


@pytest.mark.parametrize('version, brought', [('0', ''), ('1', 'uv python install 3.12\n')])
def test_a_machine_without_a_new_python_gets_one(tmp_path, version, brought):
    """The pythons on PATH say whether they are older than 3.11."""
    (tmp_path / 'launch').mkdir()
    shutil.copy(ROOT / 'launch' / 'install.sh', tmp_path / 'launch')
    tools = {'launch/local.sh': 'echo local.sh $*', 'curl': 'echo "echo installs uv"', 'uv': 'echo uv $*',
             **dict.fromkeys(('python3', 'python3.11', 'python3.12', 'python3.13'), f'exit {version}')}
    for name, text in tools.items():
        (tmp_path / name).write_text(f'#!/bin/bash\n{text}\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run([tmp_path / 'launch' / 'install.sh'], capture_output=True, text=True, check=True,
                          env={'PATH': f'{tmp_path}:/usr/bin:/bin', 'HOME': str(tmp_path)})
    assert done.stdout == f'{brought}local.sh true\n'
