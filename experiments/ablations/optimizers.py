"""Which optimizer suits a small decoder, each at its own best rate: eight optimizers, four rates, five seeds.

    lm sweep experiments/ablations/optimizers.py --together=20
    lm report runs/optimizers_sweep --html report.html
"""
from experiments.ablations import small
from lm import optim
from lm.sweep import chain, grid

config = small.config
RATES = {
    optim.SGD(schedule=small.SCHEDULE): [0.1, 0.3, 1.0, 3.0],
    optim.AdaGrad(schedule=small.SCHEDULE): [0.01, 0.03, 0.1, 0.3],
    optim.Adam(schedule=small.SCHEDULE): [1e-3, 3e-3, 1e-2, 3e-2],
    optim.AdamW(schedule=small.SCHEDULE): [1e-3, 3e-3, 1e-2, 3e-2],
    optim.Lion(schedule=small.SCHEDULE): [1e-4, 3e-4, 1e-3, 3e-3],
    optim.Adafactor(schedule=small.SCHEDULE): [1e-2, 3e-2, 0.1, 0.3],
    optim.Muon(schedule=small.SCHEDULE): [3e-3, 1e-2, 3e-2, 0.1],
    optim.ScheduleFree(): [1e-3, 3e-3, 1e-2, 3e-2],
}


def sweep():
    return chain(*(grid({'optimizer': [optimizer], 'optimizer.peak': peaks}, small.SEEDS)
                   for optimizer, peaks in RATES.items()))
