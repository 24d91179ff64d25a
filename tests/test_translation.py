"""Multi30k's captions by a model a fifth as large as the experiment's, trained for a sixteenth of its steps.

It takes five minutes, so that it runs with LM_NIGHTLY=1 alone.
"""
import os
import pathlib

import pytest

from lm import config
from lm.commands import train
from lm.data import Lines

FILE = pathlib.Path(__file__).resolve().parents[1] / 'experiments' / 'transformer_multi30k.py'
SMALL = ['model.vocab=4000', 'data.tokenizer.size=4000', 'model.width=128', 'model.encoder.depth=2',
         'model.decoder.depth=2', 'optimizer.peak=8e-3', 'optimizer.schedule.warmup=10', 'steps=100',
         'cadence.eval=100', 'objective.sample=Ein Mann.']


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get('LM_NIGHTLY'), reason='it takes five minutes; LM_NIGHTLY=1 runs it')
def test_a_short_training_learns_to_translate(tmp_path, capsys):
    try:
        Lines('multi30k/train.de.gz').fingerprint()
    except config.Error as error:
        pytest.skip(str(error))
    assert train.main(str(FILE), *SMALL, workdir=str(tmp_path / 'run'), cache=str(tmp_path)) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('validation loss'))
    assert float(line.split()[2].rstrip(',')) < 4.6
    assert (tmp_path / 'run' / 'sample.txt').read_text().startswith('Ein Mann.\n')
