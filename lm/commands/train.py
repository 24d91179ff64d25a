"""`lm train`: trains an experiment, or goes on with it."""
from pathlib import Path

from lm import config
from lm.data.cache import root
from lm.train import loop, runs, spikes

PROCESSES = True  # several processes may run it as one


def main(experiment: str, *overrides: str, workdir: str = '', cache: str = '', replay: int = 0):
    """Trains an experiment; the same line again resumes it.

    Args:
        experiment: the experiment file
        overrides: values to set, e.g. model.depth=12
        workdir: directory of the run, by default runs/<name of the experiment>
        cache: directory of token caches, by default $LM_CACHE or ~/.cache/lm
        replay: compute this step of the run again instead, from the nearest checkpoint before it, compare its loss with
            the record (exit code 1 where they differ), and write what was in its batch and what it did to each layer
    """
    loaded = config.load(experiment, overrides)
    directory = Path(workdir or f'runs/{Path(experiment).stem}')
    if replay:
        return int(not spikes.again(loaded.config, directory, root(cache), replay))
    run = runs.Run(directory, loaded)
    try:
        loop.train_in(loaded.config, run, root(cache))
    except loop.Stopped:
        print(f'stopped and saved in {directory}; the same line resumes it.')
        raise SystemExit(loop.STOPPED) from None
    finally:
        run.close()
    return 0
