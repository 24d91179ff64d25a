"""Which optimizer suits a small decoder, each at its own best rate: eight optimizers, four rates or more, five seeds.

    lm sweep experiments/ablations/optimizers.py --together=20
    lm report runs/optimizers_sweep --html experiments/ablations/optimizers.html

Hardware and time: two shared CPU cores, 175 runs in 15 to 20 CPU minutes, November 2026, jax 0.12. Validation loss
after 307,200 tokens, five seeds each at the best rate, against AdamW; p by Holm over seven comparisons:

    Muon          0.03   1.927  -0.140 [-0.154, -0.126]  p 6e-5  better
    AdamW         0.01   2.067
    Adafactor     0.1    2.069  +0.002 [-0.014, +0.018]  p 0.75  undecided, 53 more seeds
    Adam          0.01   2.083  +0.016 [-0.002, +0.034]  p 0.14  undecided, 10 more seeds
    Lion          0.003  2.128  +0.061 [+0.054, +0.068]  p 7e-5  worse
    ScheduleFree  0.003  2.133  +0.065 [+0.057, +0.073]  p 7e-5  worse
    SGD           0.3    2.300  +0.233 [+0.208, +0.257]  p 6e-5  worse
    AdaGrad       0.3    2.453  +0.386 [+0.352, +0.419]  p 4e-5  worse

Every best rate lies inside its grid. Weight decay and the betas were not tuned, and 400 steps are few: ScheduleFree in
particular was made for longer runs. At first Lion and AdaGrad were best at the highest rate tried, and the report would
not call them; rates were added.
"""
from experiments.ablations import small
from lm import optim
from lm.sweep import chain, grid

config = small.config
RATES = {
    optim.SGD(schedule=small.SCHEDULE): [0.1, 0.3, 1.0, 3.0],
    optim.AdaGrad(schedule=small.SCHEDULE): [0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
    optim.Adam(schedule=small.SCHEDULE): [1e-3, 3e-3, 1e-2, 3e-2],
    optim.AdamW(schedule=small.SCHEDULE): [1e-3, 3e-3, 1e-2, 3e-2],
    optim.Lion(schedule=small.SCHEDULE): [1e-4, 3e-4, 1e-3, 3e-3, 1e-2],
    optim.Adafactor(schedule=small.SCHEDULE): [1e-2, 3e-2, 0.1, 0.3],
    optim.Muon(schedule=small.SCHEDULE): [3e-3, 1e-2, 3e-2, 0.1],
    optim.ScheduleFree(): [1e-3, 3e-3, 1e-2, 3e-2],
}


def sweep():
    return chain(*(grid({'optimizer': [optimizer], 'optimizer.peak': peaks}, small.SEEDS)
                   for optimizer, peaks in RATES.items()))
