"""`lm bench`: how fast an experiment trains on this machine."""
import json

from lm import bench, config
from lm.train import Config

PROCESSES = True  # several processes may run it as one


def main(experiment: str, *overrides: str, steps: int = 20):
    """Measures how fast an experiment trains on this machine, as JSON.

    Args:
        experiment: the experiment file
        overrides: values to set, e.g. model.depth=12
        steps: how many steps to time
    """
    if steps < 1:
        raise config.Error(f'--steps={steps} times nothing; try --steps=20.')
    settings = config.load(experiment, overrides, Config).config
    loader = bench.measure_loader(settings.data, 10 * steps)
    print(json.dumps({'experiment': experiment, 'overrides': list(overrides), **bench.measure(settings, steps),
                      'loader_tokens_per_second': loader}, indent=1))
