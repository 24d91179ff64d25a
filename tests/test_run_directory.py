"""The directory of a run: nothing of anybody else's is overwritten in it, and what goes missing is told."""
import dataclasses
import os
import pathlib
import socket

import jax
import pytest
from sweeps import SETTINGS

from lm import config, records, train
from lm.parallel import sharding
from lm.train import lock, runs, session
from lm.train.monitor import Monitor

FILE = pathlib.Path(__file__)
MESH = {'data': 1}
TINY = dataclasses.replace(SETTINGS, steps=4, mesh=MESH, cadence=train.Cadence(log=1, save=2))
EXPERIMENT = config.Experiment(TINY, {}, FILE)


def go(directory, cache, settings=TINY):
    run = runs.Run(directory, config.Experiment(settings, {}, FILE))
    try:
        session.train(settings, run, cache, sharding.make_mesh(MESH, jax.devices()[:1]))
    finally:
        run.close()


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.mark.parametrize('name', ['experiment.py', 'metrics.jsonl', 'sample.txt', 'lock', 'notes/today.txt'])
def test_a_directory_of_other_files_is_refused_by_their_names_and_left_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('mine')
    with pytest.raises(config.Error, match=f'{tmp_path} holds {name.split("/")[0]} and no config.json of lm'):
        runs.Run(tmp_path, EXPERIMENT)
    assert (tmp_path / name).read_text() == 'mine'
    assert [path.name for path in tmp_path.iterdir()] == [name.split('/')[0]]


def test_a_config_json_of_another_program_is_refused_and_left_alone(tmp_path):
    for content in ('{"architectures": ["LlamaForCausalLM"]}', '{"config": {"lr": 1}}', 'null', ''):
        (tmp_path / 'config.json').write_text(content)
        with pytest.raises(config.Error, match='config.json is damaged .*; give an empty --workdir'):
            runs.Run(tmp_path, EXPERIMENT)
        assert (tmp_path / 'config.json').read_text() == content


def test_who_trains_in_a_directory_is_named(tmp_path):
    run = runs.Run(tmp_path, EXPERIMENT)
    with pytest.raises(lock.Busy, match=rf'another process \({os.getpid()} on {socket.gethostname()}\) is'):
        runs.Run(tmp_path, EXPERIMENT)
    run.close()


def test_what_a_killed_start_leaves_is_no_obstacle(tmp_path):
    (tmp_path / 'lock').write_text('host 4711 1764500000.25')
    (tmp_path / '.config.json.4711').write_text('{"con')
    runs.Run(tmp_path, EXPERIMENT).close()
    assert runs.read(tmp_path) == TINY


@pytest.mark.parametrize('make, fault', [
    (lambda path: path.write_text(''), 'File exists'), (os.mkfifo, 'File exists'),
    (lambda path: path.symlink_to(path), 'File exists')])
def test_a_work_directory_that_is_none_is_one_line(tmp_path, make, fault):
    make(tmp_path / 'run')
    with pytest.raises(config.Error, match=f'cannot write to .*run: {fault}; '):
        runs.Run(tmp_path / 'run', EXPERIMENT)


def test_a_lock_that_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / 'lock')
    with pytest.raises(config.Error, match='holds lock and no config.json of lm'):
        runs.Run(tmp_path, EXPERIMENT)


def test_a_name_that_is_a_pattern_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(config.Error, match='has one of .* in its name, and checkpoints saved there cannot be read'):
        runs.Run(tmp_path / 'a[1]', EXPERIMENT)
    assert not list(tmp_path.iterdir())


def test_a_bucket_is_refused_with_the_way_around(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('gs://bucket/run', 's3://bucket/run'):
        with pytest.raises(config.Error, match='is not in a file system, .*; mount the bucket'):
            runs.Run(name, EXPERIMENT)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['metrics.jsonl', 'config.json', 'experiment.py', 'lock'])
def test_a_file_removed_while_the_run_trains_is_told_at_the_next_save(tmp_path, cache, name, monkeypatch):
    record = Monitor.record

    def removing(self, step, *args):
        record(self, step, *args)
        if step == 1:
            (tmp_path / 'run' / name).rename(tmp_path / name)
    monkeypatch.setattr(Monitor, 'record', removing)
    with pytest.raises(config.Error, match=f'{name} was removed or replaced while the run trained'):
        go(tmp_path / 'run', cache)


class Hopeless(train.NextToken):
    """A validation loss that is not finite."""

    def score(self, *args):
        return {**super().score(*args), 'loss': float('nan')}


def test_a_run_that_ends_not_finite_says_so_whenever_it_is_asked(tmp_path, cache):
    settings = dataclasses.replace(TINY, objective=Hopeless())
    for _ in range(2):
        with pytest.raises(config.Error, match='the last loss of .* is not finite; .* smaller optimizer.peak than'):
            go(tmp_path, cache, settings)
    assert {record['step'] for record in records.read(tmp_path)} == {1, 2, 3, 4}


def test_more_steps_than_a_finished_run_had_are_refused_with_the_way(tmp_path, cache):
    go(tmp_path / 'run', cache)
    longer = dataclasses.replace(TINY, steps=6)
    with pytest.raises(config.Error, match=r'steps \(4 there, 6 here\); give another --workdir, to train on from its '
                                           r"parameters add \"start=From\('.*run'\)\""):
        go(tmp_path / 'run', cache, longer)
    start = config.override(longer, {'start': train.From(str(tmp_path / 'run'))})
    go(tmp_path / 'on', cache, start)
    go(tmp_path / 'run', cache, dataclasses.replace(TINY, cadence=train.Cadence(log=2)))
    assert runs.load(tmp_path / 'on', devices=jax.devices()[:1]).step == 6


def test_a_refused_start_does_not_own_its_directory(tmp_path, cache):
    wrong = config.override(TINY, {'model.vocab': 300})
    with pytest.raises(config.Error, match='try model.vocab='):
        go(tmp_path, cache, wrong)
    go(tmp_path, cache)
    assert runs.load(tmp_path, devices=jax.devices()[:1]).step == 4


def test_checkpoints_that_are_gone_are_told_and_the_record_stays(tmp_path, cache):
    settings = dataclasses.replace(TINY, steps=8)
    go(tmp_path / 'run', cache, settings)
    record = (tmp_path / 'run' / 'metrics.jsonl').read_text()
    (tmp_path / 'run' / 'checkpoints').rename(tmp_path / 'elsewhere')
    with pytest.raises(config.Error, match='checkpoints is empty, and by the record it was not; restore it'):
        go(tmp_path / 'run', cache, settings)
    assert (tmp_path / 'run' / 'metrics.jsonl').read_text() == record


def test_the_record_follows_a_fall_back(tmp_path, cache):
    go(tmp_path, cache)
    for path in (tmp_path / 'checkpoints' / '4').rglob('manifest.ocdbt'):
        path.write_bytes(b'')
    lines = [line for line in (tmp_path / 'metrics.jsonl').read_text().splitlines() if 'valid/' not in line]
    (tmp_path / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    go(tmp_path, cache)
    steps = [record['step'] for record in records.read(tmp_path) if 'loss' in record]
    assert steps == [1, 2, 3, 4]
