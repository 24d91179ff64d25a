"""`lm sweep`: every variant of an experiment, each trained once."""
from pathlib import Path

from lm import config
from lm.data.cache import root
from lm.sweep import grid, search, vectors, view
from lm.sweep.trials import axes, open_sweep, plan, rule_of
from lm.sweep.worker import check_place, refuse, work
from lm.train import Config, runs


def main(place: str, *overrides: str, over: tuple[str, ...] = (), seeds: int = 0, workdir: str = '', cache: str = '',
         together: int = 1, stop: str = '', sample: str = '', worker: bool = False, watch: bool = False,
         trust: bool = False):
    """Trains every variant of an experiment once; rerunning the command, on any machine, resumes or joins.

    Args:
        place: the experiment file, whose sweep() yields dicts of overrides if it has one; or, for --worker and
            --watch, the directory of a sweep
        overrides: values to set in all trials, e.g. steps=500
        over: values to vary, e.g. optimizer.peak=1e-4,1e-3 or model.layer.attention.position=Rope,Alibi; every
            combination is a trial
        seeds: train every variant with so many seeds of parameters and data order
        workdir: directory of the sweep, by default runs/<name of the experiment>_sweep
        cache: directory of token caches, by default $LM_CACHE or ~/.cache/lm
        together: train up to so many trials that differ only in numbers as one program
        stop: stop bad trials early by their validation loss, e.g. 'Halving(first=100)' or 'Median(first=100)'
        sample: search instead of a grid: draw trials one after another from --over, which may then have ranges like
            optimizer.peak=1e-4..1e-2; 'Random(trials=40)', or 'Optuna(trials=40)', which learns from earlier trials
        worker: train trials of the sweep in a directory until none is left
        watch: show the status of the sweep in a directory
        trust: for --watch, execute the sweep's own code, where a part of it is defined in its experiment
    """
    options = {'seeds': seeds, 'over': over, 'workdir': workdir, 'stop': stop, 'sample': sample, 'overrides': overrides}
    if watch or worker:
        refuse('watch' if watch else 'worker', [name for name, value in options.items() if value])
    check_place(place if watch or worker else workdir)
    if watch:
        return view.watch(place, runs.trusted(place, trust))
    if together < 1:
        raise config.Error(f'--together={together} is no number of trials; try --together=16, or 1 for one by one.')
    if together > 1:
        vectors.spread(together)
    directory = Path(place if worker else workdir or f'runs/{Path(place).stem}_sweep')
    if not worker:
        loaded = config.load(place, overrides, Config)
        if sample:
            search.begin(plan(loaded, directory, [], rule_of(stop), overrides), sample, over, seeds)
        else:
            search.refuse_ranges(over)
            swept = config.sweep(place) if hasattr(config.open_file(place), 'sweep') else [{}]
            if not swept:
                raise config.Error(f'{place}: sweep() yields no trial; yield dicts of overrides, e.g. {{"seed": 1}}.')
            plan(loaded, directory, grid(swept, *axes(over, seeds)), rule_of(stop), overrides)
    return work(open_sweep(directory, runs.trusted(directory, True)), root(cache), together)
