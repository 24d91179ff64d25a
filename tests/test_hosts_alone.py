"""One process: the environment it reads, its messages, clock skew, stragglers, and how it ends when a peer is lost."""
import http.server
import pathlib
import socket
import subprocess
import sys
import threading

import pytest

from lm import config
from lm.parallel import heartbeat, processes

ROOT = pathlib.Path(__file__).resolve().parents[1]
SRUN = {'SLURM_JOB_ID': '7', 'SLURM_STEP_NODELIST': 'n[1-2]', 'SLURM_NTASKS': '2', 'SLURM_PROCID': '0',
        'SLURM_LOCALID': '0', 'SLURM_STEP_NUM_TASKS': '2'}


@pytest.mark.parametrize('environ, found', [
    ({}, None),
    ({'LM_COORDINATOR': 'a:1', 'LM_PROCESSES': '1', 'LM_PROCESS': '0'}, None),
    ({'LM_COORDINATOR': 'a:1', 'LM_PROCESSES': '3', 'LM_PROCESS': '2'},
     {'coordinator_address': 'a:1', 'num_processes': 3, 'process_id': 2, 'cluster_detection_method': 'deactivate'}),
    ({'SLURM_STEP_NUM_TASKS': '1', 'SLURM_NTASKS': '4'}, None),
    (SRUN, {'cluster_detection_method': 'slurm'}),
    ({**SRUN, 'SLURM_STEP_TASKS_PER_NODE': '1(x2)', 'CUDA_VISIBLE_DEVICES': '0,1,2,3'},
     {'cluster_detection_method': 'slurm', 'local_device_ids': [0, 1, 2, 3]}),
    ({**SRUN, 'SLURM_STEP_NUM_TASKS': '4', 'SLURM_STEP_TASKS_PER_NODE': '2(x2)', 'CUDA_VISIBLE_DEVICES': '1'},
     {'cluster_detection_method': 'slurm', 'local_device_ids': [0]}),
    ({**SRUN, 'SLURM_STEP_NUM_TASKS': '4', 'SLURM_STEP_TASKS_PER_NODE': '2(x2)', 'CUDA_VISIBLE_DEVICES': '0,1'},
     {'cluster_detection_method': 'slurm'}),
])
def test_the_environment_says_which_process_this_is(environ, found):
    assert processes.initialize_arguments({'JAX_PLATFORMS': 'cpu', **environ}) == found


@pytest.mark.parametrize('environ, words', [
    ({'LM_PROCESSES': '2'}, 'LM_COORDINATOR is not set beside LM_PROCESSES'),
    ({'LM_COORDINATOR': 'a:1', 'LM_PROCESSES': '2', 'LM_PROCESS': '2'}, 'LM_PROCESS=2 is not one of LM_PROCESSES=2'),
    ({'LM_COORDINATOR': 'a', 'LM_PROCESSES': '2', 'LM_PROCESS': '0'}, 'LM_COORDINATOR=a is not host:port'),
    ({'LM_COORDINATOR': 'a:99999', 'LM_PROCESSES': '2', 'LM_PROCESS': '0'}, 'LM_COORDINATOR=a:99999 is not host:port'),
    ({'LM_COORDINATOR': 'a:²', 'LM_PROCESSES': '2', 'LM_PROCESS': '0'}, 'LM_COORDINATOR=a:² is not host:port'),
    ({'LM_COORDINATOR': 'a:1', 'LM_PROCESSES': '²', 'LM_PROCESS': '0'}, 'LM_PROCESS=0 is not one of LM_PROCESSES=²'),
    ({'LM_COORDINATOR': 'a:1', 'LM_PROCESSES': '9' * 5000, 'LM_PROCESS': '0'}, 'LM_PROCESS=0 is not one of'),
    ({'SLURM_STEP_NUM_TASKS': 'abc'}, '^SLURM_STEP_NUM_TASKS=abc does not begin with a number of 1 or more; set it'),
    ({'SLURM_STEP_NUM_TASKS': '-2'}, '^SLURM_STEP_NUM_TASKS=-2 does not begin'),
    ({'SLURM_STEP_NUM_TASKS': '2'}, '^SLURM_STEP_NODELIST= is not what srun sets beside SLURM_STEP_NUM_TASKS=2; start'),
    ({**SRUN, 'SLURM_JOB_ID': ''}, '^SLURM_JOB_ID= is not what srun sets'),
    ({**SRUN, 'SLURM_PROCID': '1.5'}, r'^SLURM_PROCID=1\.5 is not what srun sets'),
    ({**SRUN, 'SLURM_STEP_TASKS_PER_NODE': '(x3),1', 'CUDA_VISIBLE_DEVICES': '0'},
     r'^SLURM_STEP_TASKS_PER_NODE=\(x3\),1 does not begin with a number'),
    ({**SRUN, 'SLURM_STEP_TASKS_PER_NODE': 'two', 'CUDA_VISIBLE_DEVICES': '0'}, '^SLURM_STEP_TASKS_PER_NODE=two does'),
])
def test_an_environment_that_says_half_is_refused(environ, words):
    with pytest.raises(config.Error, match=words):
        processes.initialize_arguments(environ)


def test_a_port_that_another_program_has_is_refused():
    with socket.socket() as other:
        other.bind(('', 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(config.Error, match=f'port {port} .*try LM_COORDINATOR=here:{port + 1} on all hosts'):
            processes.check_port(f'here:{port}')
    processes.check_port(f'here:{port}')


@pytest.mark.parametrize('address, message', [
    ('localhost:1234', 'p 1 waits for the others at localhost:1234, for 5 minutes at most.'),
    ('no-such-host.invalid:1234', 'at no-such-host.invalid:1234, a host name that does not resolve here, for'),
    ('', 'p 1 waits for the others, for 5 minutes at most.')])
def test_a_process_that_waits_says_for_whom(address, message):
    assert message in processes.waiting_message('p 1', address)


def test_who_found_no_others_says_so_where_jax_aborts():
    text = ('import os\nfrom lm.parallel import processes\n'
            'with processes.startup_messages("p 1", "a:1"):\n    os.abort()')
    done = subprocess.run([sys.executable, '-c', text], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith('lm: p 1 found no others at a:1; start all')


@pytest.mark.parametrize('environ, workers', [
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, 1), ({'TPU_WORKER_HOSTNAMES': 'a,b,c,d'}, 4),
    ({'TPU_WORKER_HOSTNAMES': 'a,b', 'MEGASCALE_NUM_SLICES': '2'}, 4), ({'JAX_PLATFORMS': 'cpu'}, 1),
    ({}, 3), ({'TPU_SKIP_MDS_QUERY': '1'}, 1)])
def test_a_tpu_slice_of_several_workers_is_told_by_its_environment_or_metadata(environ, workers, monkeypatch):
    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.path.endswith('/instance/attributes/worker-network-endpoints')
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'a:0:10.0.0.1,b:1:10.0.0.2,c:2:10.0.0.3')

        def log_message(self, *args):
            pass
    monkeypatch.setattr(processes.importlib.util, 'find_spec', lambda name: True)
    monkeypatch.setattr(processes, 'glob', lambda pattern: ['/dev/accel0'])
    with http.server.HTTPServer(('127.0.0.1', 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f'127.0.0.1:{server.server_address[1]}'
        found = processes.initialize_arguments({'GCE_METADATA_IP': place, **environ})
        server.shutdown()
    assert found == ({} if workers > 1 else None)


def test_clocks_apart_and_a_slow_host_are_named():
    assert processes.clock_warnings(['a', 'b', 'c'], [100.0, 100.5, 99.0]) == []
    assert processes.clock_warnings(['a', 'b', 'c'], [100.0, 107.5, 100.1]) == [
        'the clock of host 1 (b) is 7.4 s ahead; set it by NTP.']
    assert heartbeat.straggler({0: 0.1, 1: 0.7, 2: 0.2}, 1.0) == 1
    assert heartbeat.straggler({0: 0.1, 1: 0.4, 2: 0.2}, 1.0) is None
    assert heartbeat.straggler({0: 0.6, 1: 0.7, 2: 0.6}, 1.0) is None


def test_alone_everything_is_its_own_answer():
    assert processes.first() and processes.gather({'a': 1}) == [{'a': 1}] and processes.decide(lambda: 3) == 3
    processes.agree({'a': 'b'})


@pytest.mark.parametrize('dead', [0.3, 60])
def test_a_fault_waits_to_hear_whether_another_is_lost(dead, monkeypatch):
    class Told(dict):
        def key_value_set(self, key, text, allow_overwrite):
            self[key] = text

        def key_value_dir_get(self, room):
            return list(self.items())
    ends, lives = [], dead == 60
    for name, value in {'PERIOD': 0.05, 'DEAD': dead, 'exit_now': lambda *exit: ends.append(exit),
                        'on_coordinator_loss': lambda *_: None}.items():
        monkeypatch.setattr(heartbeat, name, value)
    told = Told({f'{heartbeat.PREFIX}/1': '{"count": 7}'})  # written before the fault, whenever it is heard
    beat = heartbeat.Heartbeat(told, 0, ['a', 'b'], 'a:1')
    later = threading.Timer(0.3, told.update, [{f'{heartbeat.PREFIX}/1': '{"count": 8}'}])
    if lives:
        later.start()
    beat.wait_for_peers(known=True)
    beat.stop()
    assert told[f'{heartbeat.PREFIX}/1'] == f'{{"count": {8 if lives else 7}}}'
    assert not ends if lives else ends[0][1] == heartbeat.LOST and 'host 1 (b) is lost' in ends[0][0]
