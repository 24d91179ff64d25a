"""Where two runs part: found by the record, and by computing both again from what both have saved."""
import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import pytest

from lm import config, data, optim, records, train
from lm.commands import bisect as command
from lm.config import files
from lm.models import Decoder, Layer
from lm.nn import Attention
from lm.parallel import sharding
from lm.train import checkpoint, loop, runs, spikes
from lm.train.monitor import Monitor

FILE = pathlib.Path(__file__)
SETTINGS = train.Config(
    model=Decoder(vocab=258, depth=2, width=16, layer=Layer(Attention(heads=2), dropout=0.1)),
    data=data.Corpus(train=data.Synthetic(count=20, length=400), valid=None, tokenizer=data.Bytes(), context=16,
                     batch=8),
    optimizer=optim.AdamW(peak=1e-2, schedule=optim.Cosine(warmup=2)),
    steps=6, mesh={'data': 1}, cadence=train.Cadence(log=1, save=2, keep=9))


@dataclasses.dataclass(frozen=True)
class Bent(train.NextToken):
    """The same loss, but another gradient of one layer's weights."""

    def loss(self, model, params, batch, key=None):
        loss, metrics = super().loss(model, params, batch, key)
        extra = 1e-3 * jnp.sum(params['blocks']['mlp']['up'][1])
        return loss + extra - jax.lax.stop_gradient(extra), metrics


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(scope='module')
def trained(tmp_path_factory, cache):
    directory = tmp_path_factory.mktemp('trained') / 'run'
    run = runs.Run(directory, config.Experiment(SETTINGS, {}, FILE))
    try:
        built = train.program(SETTINGS, sharding.make_mesh(SETTINGS.mesh, jax.devices()[:1]))
        loop.fit(built, [Monitor(SETTINGS, run, SETTINGS.data.open(cache, 'train'))])
    finally:
        run.close()
    about = files.parse_json((directory / 'config.json').read_bytes(), dict)
    (directory / 'config.json').write_text(json.dumps({**about, 'devices': 1}))
    return directory


def twin(trained, directory, differs_from=None, **changes):
    """Copies a run as it would be with other settings: without checkpoints, its losses other from some step on."""
    kept = shutil.ignore_patterns('checkpoints') if changes else None
    shutil.copytree(trained, directory, ignore=kept)
    about = files.parse_json((directory / 'config.json').read_bytes(), dict)
    about['config'] = config.dump(dataclasses.replace(SETTINGS, **changes))
    (directory / 'config.json').write_text(json.dumps(about))
    changed = [record if not differs_from or record['step'] < differs_from else {**record, 'loss': record['loss'] + 0.1}
               for record in records.read(directory)]
    (directory / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in changed))
    return directory


def told(capsys, trained, other, cache):
    """Returns the exit code of `lm bisect` and what it prints."""
    code = command.main(str(trained), str(other), cache=str(cache), trust=True)
    return code, capsys.readouterr().out


def test_equal_runs_are_equal(trained, tmp_path, cache, capsys):
    code, out = told(capsys, trained, twin(trained, tmp_path / 'b'), cache)
    assert code == 0 and out.endswith('equal.\n')
    assert 'equal at all 6 steps' in out and 'equal at step 6, the newest that both saved' in out


def test_what_is_logged_more_rarely_is_still_equal(trained, tmp_path, cache, capsys):
    other = twin(trained, tmp_path / 'b', cadence=dataclasses.replace(SETTINGS.cadence, log=3))
    code, out = told(capsys, trained, other, cache)
    assert code == 0 and 'should change no result but rounding: cadence.log (1 in A, 3 in B)' in out


@pytest.mark.parametrize('changes, first', [
    ({'seed': 1}, 'before step 1, the initial tokens: 6,144 of 6,144 values differ'),
    pytest.param({'data': dataclasses.replace(SETTINGS.data, seed=1)}, 'step 1, the batch: inputs',
                 marks=pytest.mark.long),
    pytest.param({'data': dataclasses.replace(SETTINGS.data, batch=4)},
                 'step 1, the batch: inputs: of shape [8, 16] in A, of shape', marks=pytest.mark.long),
    pytest.param({'model': dataclasses.replace(SETTINGS.model, width=32)},
                 'before step 1, the initial tokens: of shape', marks=pytest.mark.long),
    ({'objective': Bent()}, 'step 1, gradient blocks/mlp/up, layer 1: 1,024 of 1,024 values differ, by at most 0.001'),
    pytest.param({'optimizer': dataclasses.replace(SETTINGS.optimizer, b1=0.8)},
                 'step 1, optimizer state direction/mu/tokens: ', marks=pytest.mark.long),
    pytest.param({'optimizer': dataclasses.replace(SETTINGS.optimizer, weight_decay=0.2)},
                 'step 1, parameter tokens: ', marks=pytest.mark.long),
])
def test_the_first_tensor_is_named(trained, tmp_path, cache, capsys, changes, first):
    code, out = told(capsys, trained, twin(trained, tmp_path / 'b', 1, **changes), cache)
    assert code == 1 and f'first difference: {first}' in out


def test_the_search_starts_at_the_last_checkpoint_that_is_equal(trained, tmp_path, cache, capsys):
    code, out = told(capsys, trained, twin(trained, tmp_path / 'b', 6), cache)
    assert code == 1 and 'the first that differs is step 6: loss' in out
    assert 'computing both again from checkpoint 4 to step 6' in out
    assert 'A is computed again bit for bit, at all 2 steps on record from 5 on.' in out
    assert 'B does not come out as it was: loss of step 6 is' in out
    assert 'run `lm replay` on each of the two there, with --step=5' in out


@pytest.mark.long
def test_a_checkpoint_that_differs_is_told_and_not_begun_from(trained, tmp_path, cache, capsys):
    other = twin(trained, tmp_path / 'b', 5)
    shutil.rmtree(other / 'checkpoints' / '4')
    shutil.rmtree(other / 'checkpoints' / '6')
    mesh = sharding.make_mesh({'data': 1}, jax.devices()[:1])
    store = checkpoint.Store(other / 'checkpoints', 9)
    state, meta = checkpoint.restore(trained / 'checkpoints', train.program(SETTINGS, mesh).abstract, 4)
    state.params['blocks']['attention']['query'] *= 1.5
    store.save(4, state, meta)
    store.close()
    code, out = told(capsys, trained, other, cache)
    assert code == 1 and 'from checkpoint 2 to step 5' in out
    assert 'The first saved parameters that differ are of step 4, blocks/attention/query, layer 0' in out


def test_what_other_code_computed_is_compared_by_its_own_replay(trained, tmp_path, cache, capsys):
    sides = [twin(trained, tmp_path / 'a'), twin(trained, tmp_path / 'b', 6)]
    rows = [{'name': 'tokens', 'layer': None, 'gradient': 1.0, 'weight': 2.0, 'update': 0.1, 'bits': [1, 2, 3]},
            {'name': 'up', 'layer': 1, 'gradient': 1.0, 'weight': 2.0, 'update': 0.1, 'bits': [4, 5, 6]}]
    for side, gradient in zip(sides, (1.0, 1.5), strict=True):
        layers = [rows[0], {**rows[1], 'gradient': gradient, 'bits': [int(4 * gradient), 5, int(6 * gradient)]}]
        spikes.write(side, {'step': 5, 'loss': 3.0, 'median': None, 'deviation': None, 'batch': 4, 'passages': [],
                            'layers': layers})
    _, out = told(capsys, *sides, cache)
    assert 'of the steps that both replayed: step 5, gradient up, layer 1: of norm 1 in A, 1.5 in B' in out


def test_data_that_changed_on_disk_is_named(trained, tmp_path, cache, capsys, monkeypatch):
    other = twin(trained, tmp_path / 'b', 3)
    monkeypatch.setattr(data.Synthetic, 'fingerprint', lambda self: 'other')
    code, out = told(capsys, trained, other, cache)
    assert code == 1 and 'first difference: the data. A: the checkpoint was trained on other data: source 0' in out


def test_a_directory_without_a_run_or_a_record_is_refused(trained, tmp_path, cache):
    with pytest.raises(config.Error, match='cannot read .*config.json: .*give the --workdir of an .lm train.'):
        command.main(str(trained), str(tmp_path))
    other = twin(trained, tmp_path / 'b')
    (other / 'metrics.jsonl').write_text('{"step": 99, "loss": 1.0}')
    with pytest.raises(config.Error, match='have no step on record in common'):
        command.main(str(trained), str(other))
    (other / 'metrics.jsonl').write_text('')
    with pytest.raises(config.Error, match='no record of a loss yet'):
        command.main(str(trained), str(other))
    (other / 'config.json').write_text('{')
    with pytest.raises(config.Error, match='config.json is damaged'):
        command.main(str(trained), str(other))
