"""`lm plan`: what an experiment takes on hardware that is not here."""
from lm import config
from lm.plan import plans
from lm.plan.show import cluster_of, dumped, searched, text

ACCELERATORS = False  # compiles for them, and must not take those that are here


def main(experiment: str, *overrides: str, on: str = '', search: bool = False, check: int = 3, price: float = 0.0,
         json: bool = False):
    """Plans an experiment for hardware that is not here: does it fit, how fast and how dear can it be.

    The real step is compiled by the real compiler. Every time is a prediction, from the compiled program and the data
    sheet: between all parts overlapping and no collective doing so.

    Args:
        experiment: the experiment file
        overrides: values to set, e.g. mesh.fsdp=256 model.remat=full
        on: the hardware: v5e-256, v5p-512, 2xv6e-256, 8xh100, ...
        search: rank all meshes, rematerialisations and micro-batches, and compile the best few
        check: how many of those at most are compiled
        price: dollars for an hour of one chip; 0 for the list price
        json: print JSON
    """
    cluster, loaded = cluster_of(on), config.load(experiment, overrides)
    if check < 1 or price < 0:
        raise config.Error(f'--check={check} compiles none; try --check=1.' if check < 1 else
                           f'--price={price} is negative; try --price=2.5, in dollars for an hour of a chip.')
    if search:
        return searched(loaded, cluster, check, price, json)
    found = plans.plan(loaded.config, cluster, loaded.file, price)
    print(dumped(found) if json else text(found))
    return 0 if found['fits'] else 1
