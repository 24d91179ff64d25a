"""Several real processes are one run, on any mesh, of any number, stopped and resumed."""
import json
import signal

import numpy as np
import pytest
from processes import RUN, finish, losses, same, start, train, wait_for

from lm import records


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('hosts')


@pytest.fixture(scope='module')
def alone(place):
    finish(train(place, place / 'alone', 'steps=12', processes=1), 0)
    return losses(place / 'alone')


@pytest.fixture(scope='module')
def longer(place):
    finish(train(place, place / 'longer', 'steps=60', processes=1), 0)
    return losses(place / 'longer')


def test_two_processes_are_one_run(place, alone):
    said = finish(train(place, place / 'two', 'steps=12'), 0)
    same(place / 'two', alone)
    assert 'valid/loss' in records.read(place / 'two')[-1]
    assert 'sample:' in said[0][0] and 'step' not in said[1][0]
    assert len(list((place / 'two' / 'tensorboard').glob('events*'))) == 1


@pytest.mark.long
@pytest.mark.parametrize('processes, devices, mesh', [
    (2, 2, "{'data': 2, 'fsdp': 2}"), (2, 1, "{'tensor': 2}"), (2, 2, "{'data': 2, 'tensor': 2}"),
    (4, 1, "{'data': 2, 'tensor': 2}"), (4, 2, "{'data': 2, 'fsdp': 4}")])
def test_a_mesh_over_processes_is_one_process(place, alone, processes, devices, mesh):
    workdir = place / f'{processes}-{devices}-{mesh}'
    finish(train(place, workdir, 'steps=12', f'mesh={mesh}', processes=processes, devices=devices), 0)
    same(workdir, alone)


INITIAL = """
import hashlib, sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from lm import config, train
from lm.parallel import processes
with processes.joined():
    built = train.program(config.load('experiments/tiny.py', sys.argv[1:]).config)
    with jax.set_mesh(built.mesh):
        params = built.init().params
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(built.mesh, PartitionSpec()))(params)
    print(hashlib.sha256(b''.join(np.asarray(x).tobytes() for x in jax.tree.leaves(whole))).hexdigest())
"""


@pytest.mark.long
def test_initial_parameters_are_bit_equal_on_any_number_of_processes(place):
    hashes = set()
    for processes, mesh in (1, {'data': 1}), (2, {'fsdp': 2}), (2, {'tensor': 2}), (4, {'fsdp': 2, 'tensor': 2}):
        (out, _), *_ = finish(start(place, ['-c', INITIAL, f'mesh={mesh}', *RUN], processes), 0)
        hashes.add(out.split('\n')[-2])
    assert len(hashes) == 1 and len(hashes.pop()) == 64


@pytest.mark.long
def test_stopped_on_four_resumes_on_two_and_on_one(place, longer):
    workdir = place / 'fewer'
    for processes, until in (4, 3), (2, 25):
        started = train(place, workdir, 'steps=60', "mesh={'fsdp': -1}", processes=processes)
        wait_for(workdir, until, started)
        started[-1].send_signal(signal.SIGTERM)
        finish(started, 75)
    assert max(losses(workdir)) < 60
    finish(train(place, workdir, 'steps=60', processes=1), 0)
    same(workdir, longer)


@pytest.mark.long
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_saves_on_both_at_one_step(place, number):
    workdir = place / f'signal-{number}'
    started = train(place, workdir, 'steps=2000', 'cadence.save=0')
    wait_for(workdir, 3, started)
    started[1].send_signal(number)
    said = finish(started, 75)
    assert 'run the same command to resume' in said[0][0]
    saved = [int(path.name) for path in (workdir / 'checkpoints').iterdir() if path.name.isdigit()]
    assert saved == [max(losses(workdir))]


@pytest.mark.long
def test_a_broken_newest_checkpoint_falls_back_on_both(place, longer):
    workdir = place / 'broken'
    started = train(place, workdir, 'steps=60', "mesh={'fsdp': 2}")
    wait_for(workdir, 9, started)
    started[0].send_signal(signal.SIGTERM)
    finish(started, 75)
    newest = workdir / 'checkpoints' / str(max(losses(workdir)))
    (part,) = (path for path in newest.rglob('ocdbt.process_1') if path.is_dir())
    for file in (path for path in part.rglob('*') if path.is_file()):
        file.write_bytes(bytes(byte ^ 0x5a for byte in file.read_bytes()))
    finish(train(place, workdir, 'steps=60', "mesh={'fsdp': 2}"), 0)
    assert (workdir / 'unreadable' / newest.name).is_dir()
    same(workdir, longer)


@pytest.mark.long
def test_two_processes_score_and_sample_a_run(place, alone):
    (out, _), (other, _) = finish(start(place, ['-m', 'lm', 'eval', str(place / 'alone')]), 0)
    recorded = records.read(place / 'alone')[-1]
    scores = json.loads(out[out.index('{'):])
    assert scores['tokens'] == recorded['valid/tokens'] and '{' not in other
    np.testing.assert_allclose(scores['loss'], recorded['valid/loss'], rtol=2e-5)
    command = ['-m', 'lm', 'generate', str(place / 'alone'), 'Once', '--length=8', '--temperature=0']
    (one, _), = finish(start(place, command, processes=1), 0)
    (out, _), _ = finish(start(place, command), 0)
    assert out.endswith(one) and one.startswith('Once')


@pytest.mark.long
def test_hosts_read_the_rows_that_their_devices_hold_in_any_order(place):
    code = """
import jax, numpy as np
from jax.sharding import Mesh
from lm.parallel import processes, sharding
with processes.joined():
    mesh = Mesh(np.array(jax.devices())[[0, 2, 1, 3]], ('data',))
    rows = sharding.rows(8, mesh)
    assert rows == ((0, 1, 4, 5), (2, 3, 6, 7))[jax.process_index()], rows
    whole = np.arange(16).reshape(8, 2)
    placed = sharding.put({'inputs': whole[list(rows)]}, mesh, 8)['inputs']
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index])
    assert sharding.rows(8, Mesh(np.array(jax.devices()), ('tensor',))) == tuple(range(8))
"""
    finish(start(place, ['-c', code], devices=2), 0)
