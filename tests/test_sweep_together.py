"""Trials as one program: equal to one by one, with the same files; and what a number decides makes two programs."""

import numpy as np
import pytest

from lm import checkpoint, config, data, metrics, optim, train
from lm.models.decoder import Decoder
from lm.sweep import together, trials, worker

TEXT = data.Synthetic(count=20, length=400)
SETTINGS = train.Config(
    model=Decoder(vocab=258, depth=1, heads=2, width=16),
    data=data.Corpus(train=data.Pick(TEXT, 0, 0.8), valid=data.Pick(TEXT, 0.8, 1), tokenizer=data.Bytes(), context=16,
                     batch=8),
    optimizer=optim.AdamW(peak=1e-2, schedule=optim.Cosine(warmup=2), ema=0.9),
    steps=8, mesh={'data': 1}, log_every=2, save_every=3, eval_every=4, eval_batches=2, sample='A')
FOUR = [{'seed': 0, 'data.seed': 0, 'optimizer.peak': 1e-2, 'optimizer.weight_decay': 0.0},
        {'seed': 1, 'data.seed': 0, 'optimizer.peak': 1e-3, 'optimizer.weight_decay': 0.5},
        {'seed': 1, 'data.seed': 3, 'optimizer.peak': 1e-2, 'optimizer.b2': 0.99},
        {'seed': 1, 'data.seed': 3, 'optimizer.peak': 3e-2, 'optimizer.schedule.end': 0.5}]


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp('cache')


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """Gives every trial on its own one of the 8 devices."""
    from lm import sharding
    make, devices = sharding.make_mesh, together.jax.devices()
    monkeypatch.setattr(sharding, 'make_mesh', lambda sizes, given=None: make(sizes, given or devices[:1]))


def begin(directory, overrides, settings=SETTINGS, rule=None):
    directory.mkdir()
    file = directory / 'file.py'
    file.write_text('')
    return trials.plan(config.Experiment(settings, {}, file), directory, overrides, rule)


@pytest.fixture(scope='module')
def alone(tmp_path_factory, cache):
    with pytest.MonkeyPatch.context() as patch:
        one_device.__wrapped__(patch) if hasattr(one_device, '__wrapped__') else None
        sweep = begin(tmp_path_factory.mktemp('alone') / 'sweep', FOUR)
        worker.work(sweep, cache)
    return sweep


def compare(one, other):
    """Asserts that two sweeps' trials have the same records and last parameters, within 0.02%."""
    for a, b in zip(one.trials, other.trials, strict=True):
        left, right = (metrics.read(trial.directory) for trial in (a, b))
        assert [each.keys() - {'tokens_per_second'} for each in left] == [
            each.keys() - {'tokens_per_second'} for each in right]
        for x, y in zip(left, right, strict=True):
            for name in x.keys() - {'tokens_per_second'}:
                np.testing.assert_allclose(x[name], y[name], rtol=2e-4, err_msg=f'{a.overrides} {name}')
        assert sorted(path.name for path in a.directory.iterdir()) == sorted(p.name for p in b.directory.iterdir())
        abstract = train.program(a.settings).abstract
        first, second = (checkpoint.Store(trial.directory / 'checkpoints').restore(abstract) for trial in (a, b))
        assert first[1] == second[1]
        together.jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), first[0], second[0])


def test_together_is_one_by_one_within_rounding_with_the_same_files(alone, tmp_path, cache):
    sweep = begin(tmp_path / 'sweep', FOUR)
    assert all(together.akin(sweep.trials[0], other) for other in sweep.trials[1:])
    assert worker.work(sweep, cache, 4) == 0
    compare(alone, sweep)
    losses = [metrics.read(trial.directory)[-1]['valid/loss'] for trial in sweep.trials]
    assert len(set(losses)) == 4
