"""Training: the experiment's Config, the one step, and the loop around it."""
from lm.train.step import (
    Config,
    Program,
    State,
    accumulated,
    functions,
    gradients,
    make_step,
    placed,
    program,
)

__all__ = ['Config', 'Program', 'State', 'accumulated', 'functions', 'gradients', 'make_step', 'placed', 'program']
