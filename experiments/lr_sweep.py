"""Which learning rate suits a tiny decoder, and with which weight decay: five rates, two decays, three seeds.

    lm sweep experiments/lr_sweep.py --together=16

One trial alone is `lm train experiments/lr_sweep.py`; `lm sweep --watch runs/lr_sweep_sweep` shows how far it is.
"""
import dataclasses

from experiments import tiny
from lm import records
from lm.sweep import grid, zipped


def config():
    settings = tiny.config()
    return dataclasses.replace(
        settings, cadence=dataclasses.replace(settings.cadence, eval=50, eval_batches=20))


def sweep():
    return grid({'optimizer.peak': [3e-4, 1e-3, 3e-3, 1e-2, 3e-2], 'optimizer.weight_decay': [0.0, 0.1]},
                zipped(dict.fromkeys(records.SEEDS, range(3))))
