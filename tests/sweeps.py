"""A sweep of runs of a second, for tests, each on one of the 8 devices."""
import jax
import pytest

from lm import config, data, optim, train
from lm.models.decoder import Decoder
from lm.sweep import trials

FILE = '''
from lm import data, optim, train
from lm.models.decoder import Decoder

TEXT = data.Synthetic(count=20, length=400)


def config():
    return train.Config(
        model=Decoder(vocab=258, depth=1, heads=2, width=16),
        data=data.Corpus(train=data.Pick(TEXT, 0, 0.8), valid=data.Pick(TEXT, 0.8, 1), tokenizer=data.Bytes(),
                         context=16, batch=8),
        optimizer=optim.AdamW(peak=1e-2, schedule=optim.Cosine(warmup=2)),
        steps=6, log_every=1, save_every=2, eval_every=2, eval_batches=2, sample='A')
'''
TEXT = data.Synthetic(count=20, length=400)
SETTINGS = train.Config(
    model=Decoder(vocab=258, depth=1, heads=2, width=16),
    data=data.Corpus(train=data.Pick(TEXT, 0, 0.8), valid=data.Pick(TEXT, 0.8, 1), tokenizer=data.Bytes(), context=16,
                     batch=8),
    optimizer=optim.AdamW(peak=1e-2, schedule=optim.Cosine(warmup=2), ema=0.9),
    steps=8, log_every=2, save_every=3, eval_every=4, eval_batches=2, sample='A')


@pytest.fixture(scope='module', autouse=True)
def one_device():
    """Gives every program one of the 8 devices, which compiles in half the time."""
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda: devices)
        yield


def begin(directory, overrides, settings=SETTINGS, rule=None):
    """Returns the sweep of some overrides of settings that no file holds."""
    directory.mkdir()
    file = directory / 'file.py'
    file.write_text('')
    return trials.plan(config.Experiment(settings, {}, file), directory, overrides, rule)
