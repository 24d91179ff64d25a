"""`lm train`: trains an experiment, or resumes it."""
from pathlib import Path

from lm import config
from lm.data.cache import root
from lm.train import Config, loop, runs, session

PROCESSES = True  # several processes may run it as one


def main(experiment: str, *overrides: str, workdir: str = '', cache: str = ''):
    """Trains an experiment; the same command again resumes it.

    Args:
        experiment: the experiment file
        overrides: values to set, e.g. model.depth=12
        workdir: directory of the run, by default runs/<name of the experiment>
        cache: directory of token caches, by default $LM_CACHE or ~/.cache/lm
    """
    loaded = config.load(experiment, overrides, Config)
    directory = Path(workdir or f'runs/{Path(experiment).stem}')
    run = runs.Run(directory, loaded)
    try:
        session.train(loaded.config, run, root(cache))
    except loop.Preempted:
        print(f'stopped and saved in {directory}; run the same command to resume.')
        raise SystemExit(loop.PREEMPTED) from None
    finally:
        run.close()
    return 0
