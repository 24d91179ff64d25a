"""`lm replay`: a step of a run computed again, compared with its record and measured layer by layer."""
from lm import config, records
from lm.config.experiments import typed
from lm.data.cache import root
from lm.debug.replay import Trajectory, replay_step
from lm.train import runs, spikes

PROCESSES = True  # several processes may run it as one


def main(run: str, *overrides: str, step: int = 0, cache: str = '', trust: bool = False):
    """Computes a step of a run again and compares it with the record; exits with 1 where they differ.

    Writes spikes/STEP.json in the run's directory: the documents of the batch, and for each layer the norms of
    gradient, weights and update.

    Args:
        run: the --workdir of an `lm train`
        overrides: values to set that affect no result, e.g. mesh.data=1 on a machine with fewer devices
        step: the step to compute, from the nearest checkpoint before it; 0 for the last loss spike on record
        cache: directory of token caches, by default $LM_CACHE or ~/.cache/lm
        trust: execute the run's own code, where its model or another part is defined in its experiment
    """
    known = runs.read(run, runs.trusted(run, trust))
    settings = config.override(known, typed(overrides))
    changed = runs.differences(known, settings)
    if changed:
        raise config.Error(f'{run} is of another experiment: {changed}; override only {", ".join(records.FREE[:4])}.')
    recorded = spikes.steps(run)
    if not step and not recorded:
        raise config.Error(f'{run} has no loss spike on record; give --step=N.')
    return int(not replay_step(Trajectory(run, settings, root(cache)), step or recorded[-1]))
