"""Runs as a user has them: stopped, killed, resumed, moved to another mesh, on broken checkpoints and bad numbers."""
import dataclasses
import io
import json
import math
import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, data, optim, records, train
from lm.debug import replay
from lm.models import Decoder, Embedding, Layer, ngram
from lm.nn import Attention
from lm.nn.positions import Learned
from lm.parallel import sharding
from lm.sweep import trials
from lm.train import loop, metrics, runs, session
from lm.train.monitor import Monitor

FILE = pathlib.Path(__file__)
TEXT = data.Synthetic(count=20, length=400)
SETTINGS = train.Config(
    model=Decoder(vocab=258, depth=1, width=16, layer=Layer(Attention(heads=2), dropout=0.1)),
    data=data.Corpus(train=data.Pick(TEXT, 0, 0.8), valid=data.Pick(TEXT, 0.8, 1), tokenizer=data.Bytes(), context=16,
                     batch=8),
    optimizer=optim.AdamW(peak=1e-2, schedule=optim.Cosine(warmup=2), ema=0.9),
    steps=12, mesh={'data': 1}, objective=train.NextToken(sample='A'),
    cadence=train.Cadence(log=1, save=3, eval=6))


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


def mesh(settings):
    """Returns the mesh of as many of the 8 devices as its sizes ask for."""
    return sharding.make_mesh(settings.mesh, jax.devices()[:math.prod(settings.mesh.values())])


def go(directory, cache, settings=SETTINGS, stop_after=None):
    """Trains in a directory as `lm train` does, asked to stop after some step, and returns {step: loss}."""
    run = runs.Run(directory, config.Experiment(settings, {}, FILE))
    if stop_after:
        write = run.writer.write

        def stopping(step, values):
            run.stop.asked = run.stop.asked or step >= stop_after
            write(step, values)
        run.writer.write = stopping
    try:
        session.train(settings, run, cache, mesh(settings))
    except loop.Preempted:
        assert stop_after
    finally:
        run.close()
    return {record['step']: record['loss'] for record in records.read(directory) if 'loss' in record}


@pytest.fixture(scope='module')
def straight(tmp_path_factory, cache):
    directory = tmp_path_factory.mktemp('straight')
    return directory, go(directory, cache)


def test_a_run_leaves_its_record(straight):
    directory, losses = straight
    assert list(losses) == list(range(1, 13))
    about = json.loads((directory / 'config.json').read_text())
    assert runs.read(directory) == SETTINGS
    assert about['versions']['jax'] and 'commit' in about
    assert list((directory / 'tensorboard').glob('events*'))
    assert [record['step'] for record in records.read(directory) if 'valid/loss' in record] == [6, 12]


def test_stopped_and_resumed_is_never_stopped_bit_for_bit(straight, tmp_path, cache):
    go(tmp_path, cache, stop_after=5)
    assert max(records.read(tmp_path), key=lambda record: record['step'])['step'] < 8
    assert go(tmp_path, cache) == straight[1]


def test_resumed_on_another_mesh_is_the_same_within_rounding(straight, tmp_path, cache):
    go(tmp_path, cache, stop_after=5)
    moved = go(tmp_path, cache, dataclasses.replace(SETTINGS, mesh={'data': 2, 'fsdp': 4}))
    assert moved.keys() == straight[1].keys()
    np.testing.assert_allclose(list(moved.values()), list(straight[1].values()), rtol=2e-5)


def finish(directory, cache, capsys, **changes):
    """Returns (standard output, warnings) of a run of two steps, which must end as one without a fault does."""
    go(directory, cache, dataclasses.replace(SETTINGS, steps=2, **changes))
    out, err = capsys.readouterr()
    assert out.endswith(f'run: {directory}\n')
    return out, [line for line in err.splitlines() if line.startswith('lm: ')]


def test_a_sample_that_cannot_be_drawn_is_a_warning_of_one_line(tmp_path, cache, capsys):
    corpus = dataclasses.replace(SETTINGS.data, tokenizer=data.Chars(), valid=SETTINGS.data.train)
    size = len({letter for document in corpus.train.documents() for letter in document.text})
    model = dataclasses.replace(SETTINGS.model, vocab=size)
    _, warnings = finish(tmp_path, cache, capsys, data=corpus, model=model, objective=train.NextToken(sample='a€'))
    assert warnings == [f"lm: {tmp_path} is finished, without its sample: '€' (U+20AC) is not among the {size} "
                        'characters of the training text; remove it, or train with data.tokenizer=Bytes(), which takes '
                        'every text.']
    assert not (tmp_path / 'sample.txt').exists()


def test_a_sample_fits_learned_positions(tmp_path, cache, capsys):
    model = dataclasses.replace(SETTINGS.model, embedding=Embedding(Learned(16)))
    objective = train.NextToken(sample='abc')
    assert finish(tmp_path, cache, capsys, model=model, objective=objective)[1] == []
    assert (tmp_path / 'sample.txt').read_text().startswith('abc')


def test_baselines_that_fail_are_a_warning_of_one_line(tmp_path, cache, capsys, monkeypatch):
    def fail(train, held):
        raise MemoryError('no room for the n-grams\nof this text')
    monkeypatch.setattr(ngram, 'bits_per_byte', fail)
    out, warnings = finish(tmp_path, cache, capsys, objective=train.NextToken(baselines=True))
    assert warnings == ['lm: the run is finished, without its baselines: no room for the n-grams']
    assert 'bits per byte  this model' in out and (tmp_path / 'sample.txt').exists()


def test_a_sample_that_standard_output_cannot_spell_is_kept(tmp_path, cache, monkeypatch, capsys):
    out = io.TextIOWrapper(io.BytesIO(), encoding='ascii', newline='\n')
    with monkeypatch.context() as patch:
        patch.setattr('sys.stdout', out)
        go(tmp_path, cache, dataclasses.replace(SETTINGS, steps=2, objective=train.NextToken(sample='é')))
        out.flush()
    assert f'lm: {tmp_path} is finished, without its sample: ' in capsys.readouterr().err
    assert out.buffer.getvalue().endswith(f'run: {tmp_path}\n'.encode())
    assert (tmp_path / 'sample.txt').read_text(encoding='utf-8').startswith('é')


def test_finished_says_so(straight, cache, capsys):
    go(straight[0], cache)
    assert 'is finished: 12 steps' in capsys.readouterr().out


def test_a_run_begins_with_its_documents_bytes_and_rejects(straight, tmp_path, cache, capsys):
    (tmp_path / 'a.jsonl').write_text('{"text": "abcdefghijklmnopqrstuvwxyz"}\n' * 20 + 'broken\n')
    corpus = dataclasses.replace(SETTINGS.data, train=data.Files(str(tmp_path / 'a.jsonl')))
    go(tmp_path / 'run', cache, dataclasses.replace(SETTINGS, steps=2, data=corpus))
    out = capsys.readouterr().out.splitlines()
    assert out[0] == 'train: 20 documents, 520 bytes, rejected: 1 x broken JSON (`lm data` shows where)'
    assert re.fullmatch(r'valid: \d documents, [\d,]+ bytes, none rejected', out[1])


def test_more_than_a_tenth_rejected_is_refused_unless_allowed(tmp_path, cache):
    (tmp_path / 'a.jsonl').write_text('{"text": "abcdefghijklmnopqrstuvwxyz"}\n' * 20 + 'broken\n' * 10)
    corpus = dataclasses.replace(SETTINGS.data, train=data.Files(str(tmp_path / 'a.jsonl')))
    settings = dataclasses.replace(SETTINGS, steps=2, data=corpus)
    with pytest.raises(config.Error, match=r'^10\.3% of a \(train\) is rejected: 10 x broken JSON, first at .*a\.jsonl'
                                           r':21; mend the files, or allow it by data\.max_rejected=0\.11\.$'):
        go(tmp_path / 'run', cache, settings)
    allowed = dataclasses.replace(settings, data=dataclasses.replace(corpus, max_rejected=0.11))
    assert len(go(tmp_path / 'run', cache, allowed)) == 2
    assert trials.identity(allowed) == trials.identity(settings)
    assert corpus.open(cache).fingerprint == allowed.data.open(cache).fingerprint


def test_another_experiment_is_refused_by_name(straight, cache):
    other = dataclasses.replace(SETTINGS, optimizer=optim.AdamW(peak=5e-3, schedule=optim.Cosine(warmup=2), ema=0.9))
    with pytest.raises(config.Error, match=r'belongs to another experiment: optimizer.peak \(0.01 there, 0.005 here\)'):
        go(straight[0], cache, other)


def test_other_data_is_refused_by_name(tmp_path, cache, monkeypatch):
    go(tmp_path, cache, stop_after=3)
    monkeypatch.setattr(data.Synthetic, 'fingerprint', lambda self: 'other')
    with pytest.raises(config.Error, match='the checkpoint was trained on other data: source 0'):
        go(tmp_path, cache)


@pytest.mark.parametrize('damage', ['truncate', 'corrupt', 'remove'])
def test_a_broken_newest_checkpoint_falls_back_to_the_one_before(straight, tmp_path, cache, damage):
    go(tmp_path, cache, stop_after=7)
    steps = sorted(int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit())
    newest = tmp_path / 'checkpoints' / str(steps[-1])
    files = [path for path in newest.rglob('*') if path.is_file() and path.stat().st_size and 'commit' not in path.name]
    for path in files:
        content = path.read_bytes()
        if damage == 'remove':
            path.unlink()
        else:
            path.write_bytes(content[:len(content) // 2] if damage == 'truncate' else bytes(b ^ 0x5a for b in content))
    assert len(steps) > 1
    assert go(tmp_path, cache) == straight[1]
    assert (tmp_path / 'unreadable' / str(steps[-1])).exists()


def test_only_the_last_checkpoints_and_the_best_are_kept(tmp_path, cache):
    settings = dataclasses.replace(SETTINGS, cadence=train.Cadence(log=1, save=1, eval=1, keep=2))
    go(tmp_path, cache, settings)
    scored = [record for record in records.read(tmp_path) if 'valid/loss' in record]
    best = min(scored, key=lambda record: record['valid/loss'])['step']
    kept = {int(path.name) for path in (tmp_path / 'checkpoints').iterdir() if path.name.isdigit()}
    assert {11, 12, best} <= kept and len(kept) <= 4


@dataclasses.dataclass(frozen=True)
class Fragile(train.NextToken):
    """A loss that is not finite for batches with a mark."""

    def loss(self, model, params, batch, key=None):
        loss, measured = super().loss(model, params, batch, key)
        bad = jnp.where(batch['inputs'][0, 0] < 0, jnp.nan, 1.0)
        return loss * bad, {**measured, 'loss': measured['loss'] * bad}


def mark(stream, steps):
    """Returns the stream with a mark in the batches of some steps."""
    class Marked:
        def __getattr__(self, name):
            return getattr(stream, name)

        def batch_at(self, step, rows=None):
            batch = stream.batch_at(step, rows)
            if step in steps:
                batch['inputs'][0, 0] = -1
            return batch
    return Marked()


def go_fragile(directory, cache, steps):
    settings = dataclasses.replace(SETTINGS, objective=Fragile(), patience=3,
                                   cadence=train.Cadence(log=1, save=3, keep=9))
    run = runs.Run(directory, config.Experiment(settings, {}, FILE))
    stream = mark(settings.data.open(cache, 'train'), steps)
    try:
        state = loop.fit(train.program(settings, mesh(settings)), [Monitor(settings, run, stream)])
        return state, run.store.restore(train.program(settings, mesh(settings)).abstract)[1]
    finally:
        run.close()


def test_updates_that_are_not_finite_are_skipped(tmp_path, cache):
    state, meta = go_fragile(tmp_path, cache, {4, 5})
    assert int(state.step) == 12 and meta['offset'] == 0
    assert {record['step']: record['bad'] for record in records.read(tmp_path) if record.get('bad')} == {5: 1, 6: 2}


def test_a_run_of_bad_batches_goes_back_and_steps_past_them(tmp_path, cache):
    state, meta = go_fragile(tmp_path, cache, {4, 5, 6})
    assert int(state.step) == 12 and np.isfinite(float(jnp.sum(state.params['tokens'])))
    assert meta['offset'] == 7 - 3
    assert [record['step'] for record in records.read(tmp_path) if 'loss' in record] == list(range(1, 13))
    assert [record for record in records.read(tmp_path) if 'offset' in record] == [{'step': 3, 'offset': 4}]


def test_a_step_after_bad_batches_is_computed_again_to_the_last_bit(tmp_path, cache):
    go_fragile(tmp_path, cache, {4, 5, 6})
    settings = runs.read(tmp_path, FILE)
    past = replay.Trajectory(tmp_path, settings, cache, mesh(settings))
    assert past.starts(8) == [6, 3, 0] and past.number(3) == 2 and past.number(4) == 7
    losses = {record['step']: record['loss'] for record in past.records if 'loss' in record}
    for start in (3, 0):
        state = past.restore(start)
        for step in range(start + 1, 9):
            state, values = past.step(state, step)
            assert values['loss'] == losses[step]
    past.before_rollback(0)
    assert past.starts(8) == [3, 0] and past.number(4) == 3


def test_a_loss_that_never_recovers_ends_with_a_remedy(tmp_path, cache):
    with pytest.raises(config.Error, match='not finite whichever batches follow step 3; try optimizer.peak='):
        go_fragile(tmp_path, cache, set(range(4, 1000)))


def test_wrong_vocabulary_is_refused(tmp_path, cache):
    settings = dataclasses.replace(SETTINGS, model=dataclasses.replace(SETTINGS.model, vocab=300))
    with pytest.raises(config.Error, match='model.vocab=300 and the tokenizer has 258 tokens; try model.vocab=258'):
        go(tmp_path, cache, settings)


def test_a_directory_in_use_or_not_writable_is_refused(tmp_path, cache):
    run = runs.Run(tmp_path / 'a', config.Experiment(SETTINGS, {}, FILE))
    with pytest.raises(config.Error, match=r'another process \(\d+ on \S+\) is training in'):
        runs.Run(tmp_path / 'a', config.Experiment(SETTINGS, {}, FILE))
    run.close()
    (tmp_path / 'file').write_text('')
    with pytest.raises(config.Error, match='cannot write to .*file/b: Not a directory; give another --workdir'):
        runs.Run(tmp_path / 'file' / 'b', config.Experiment(SETTINGS, {}, FILE))


def test_a_run_can_be_read_on_devices_that_its_batch_does_not_divide_over(straight):
    assert SETTINGS.data.batch % 3
    assert runs.load(straight[0], devices=jax.devices()[:3]).mesh.size == 3


def test_a_copied_run_can_be_read_without_its_data(straight, tmp_path):
    shutil.copytree(straight[0], tmp_path / 'copy')
    trained = runs.load(tmp_path / 'copy')
    assert trained.step == 12
    assert trained.encoder.decode(trained.encoder.encode('naïve')) == 'naïve'


def test_a_record_on_a_full_disk_is_one_line(tmp_path):
    (tmp_path / 'metrics.jsonl').symlink_to('/dev/full')
    writer = metrics.Writer(tmp_path, 10)
    for _ in range(2):
        with pytest.raises(config.Error, match='cannot write to .*: No space left on device; free some space'):
            writer.write(1, {'loss': 1.0})


def test_the_best_checkpoint_is_that_of_one_text(tmp_path, cache):
    """The last validation reads all text, those before it one batch; the best is of the least loss on that batch."""
    cadence = train.Cadence(log=1, save=3, eval=3, eval_batches=1, keep=1)
    settings = dataclasses.replace(SETTINGS, cadence=cadence)
    go(tmp_path, cache, settings)
    *before, last = (record for record in records.read(tmp_path) if 'valid/loss' in record)
    trained = runs.load(tmp_path, 12, jax.devices()[:1])
    valid = settings.data.open(cache, 'valid')
    whole, part = (settings.objective.score(settings.model, trained.params, valid, trained.mesh, batches)
                   for batches in (0, 1))
    assert (last['valid/loss'], last['valid/tokens']) == (pytest.approx(whole['loss']), whole['tokens'])
    assert last['valid/compared'] == pytest.approx(part['loss']) != pytest.approx(whole['loss'])
    assert all('valid/compared' not in record and record['valid/tokens'] == part['tokens'] for record in before)
    run = runs.Run(tmp_path, config.Experiment(settings, {}, FILE))
    try:
        assert run.store.scores == {**{record['step']: record['valid/loss'] for record in before},
                                    12: last['valid/compared']}
    finally:
        run.close()
