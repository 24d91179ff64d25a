"""Sweeps for tests: of a model of pairs that compiles in a second, and of a decoder; each on one of the 8 devices."""
import jax
import pytest

from lm import config, data, optim, train
from lm.models import Decoder, Layer
from lm.nn import Attention
from lm.sweep import trials

FILE = '''
import dataclasses

import jax
import jax.numpy as jnp

from lm import data, optim, train
from lm.models import Auxiliary, Model
from lm.nn import losses, positions, weights

TEXT = data.Synthetic(count=20, length=400)


@dataclasses.dataclass(frozen=True)
class Bigram(Model):
    vocab: int = 258
    position: positions.Position = positions.Rope()

    def declare(self, key):
        table = 0.02 * jax.random.normal(key, (self.vocab, self.vocab))
        return {'table': weights.Weight(table, ('vocab', 'embed'))}

    def token_losses(self, params, batch, key=None, smoothing=0.0):
        logits = params['table'][batch['inputs']]
        return *losses.cross_entropy(logits, batch['targets'], self.vocab, smoothing), Auxiliary(0.0, {})

    def prefill(self, params, tokens, lengths, slots):
        return params['table'][tokens[jnp.arange(len(tokens)), lengths - 1]], {'length': lengths}

    def decode(self, params, tokens, cache):
        return params['table'][tokens], {'length': cache['length'] + 1}


def config():
    return train.Config(
        model=Bigram(),
        data=data.Corpus(train=data.Pick(TEXT, 0, 0.8), valid=data.Pick(TEXT, 0.8, 1), tokenizer=data.Bytes(),
                         context=16, batch=8),
        optimizer=optim.AdamW(peak=1e-2, schedule=optim.Cosine(warmup=2)),
        steps=6, objective=train.NextToken(sample='A'),
        cadence=train.Cadence(log=1, save=2, eval=2, eval_batches=2))
'''
TEXT = data.Synthetic(count=20, length=400)
SETTINGS = train.Config(
    model=Decoder(vocab=258, depth=1, width=16, layer=Layer(Attention(heads=2))),
    data=data.Corpus(train=data.Pick(TEXT, 0, 0.8), valid=data.Pick(TEXT, 0.8, 1), tokenizer=data.Bytes(), context=16,
                     batch=8),
    optimizer=optim.AdamW(peak=1e-2, schedule=optim.Cosine(warmup=2), ema=0.9),
    steps=8, objective=train.NextToken(sample='A'), cadence=train.Cadence(log=2, save=3, eval=4, eval_batches=2))


@pytest.fixture(scope='module', autouse=True)
def one_device():
    """Gives every program one of the 8 devices, which compiles in half the time."""
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, 'devices', lambda: devices)
        yield


def begin(directory, overrides, settings=SETTINGS, rule=None):
    """Returns the sweep of some overrides of settings that no file holds."""
    file = directory.with_suffix('.py')
    file.write_text('')
    return trials.plan(config.Experiment(settings, {}, file), directory, overrides, rule)


def reopened(directory):
    """Returns the sweep of a directory, of which the experiment is trusted."""
    return trials.open_sweep(directory, directory / 'experiment.py')
