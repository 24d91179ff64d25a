"""`lm sweep`: plans the trials of an experiment and trains those that nobody has trained or is training."""
import errno
import json
import os
import time
import traceback

from lm import config, records
from lm.config import files
from lm.parallel import processes
from lm.sweep import claims, repairs, search, together, vectors, view
from lm.sweep.stopping import Judged
from lm.sweep.trials import SETTLED, open_sweep, shown, states
from lm.train import lock, loop, runs, session


def refuse(verb, names):
    """Raises config.Error where what only a new sweep takes was given beside --worker or --watch."""
    if names:
        name = names[0] if names[0] == 'overrides' else f'--{names[0]}'
        raise config.Error(f'--{verb} takes a sweep as it was begun, and {name} would change nothing; leave that out, '
                           'or give it to lm sweep EXPERIMENT to add trials.')


def check_place(place):
    """Raises config.Error where a sweep's directory would be in a bucket, in which no claim is exclusive."""
    if '://' in place:
        raise config.Error(f'{place} is a bucket, and workers claim trials by files that only a file system creates '
                           'exclusively; give a directory on a disk that all workers share.')


def work(sweep, cache, width=1):
    """Trains trials, up to `width` as one program, until none of the sweep is left; returns the exit code.

    Trials that others add meanwhile, or that a sampler draws, are trained too.
    """
    print(f'{len(sweep.trials)} trials in {sweep.directory}', flush=True)
    repairs.mend(sweep, states(sweep)[0], cache)
    with claims.Claims(sweep.directory) as desk:
        alone = set()
        while True:
            sweep = open_sweep(sweep.directory, sweep.code)
            chosen, waiting = choose(sweep, desk, width, alone)
            if not chosen and search.ask(sweep, width):
                continue
            if not chosen and not waiting:
                break
            if not chosen:
                time.sleep(claims.PERIOD)
                continue
            try:
                alone |= _train(sweep, chosen, cache, width)
            except loop.Preempted:
                print(f'stopped and saved in {sweep.directory}; run the same command to resume.')
                return loop.PREEMPTED
            finally:
                for trial in chosen:
                    desk.release(trial.id)
    view.show(sweep)
    return int('failed' in states(sweep)[0].values())


def choose(sweep, desk, width=1, alone=()):
    """Returns the trials to train next, claimed, and whether others have trials that may yet be left to this worker."""
    now, progressed = states(sweep)
    taken, waiting = [], False
    ready = [trial for trial in sweep.trials if now[trial.id] not in SETTLED]
    ready.sort(key=lambda trial: -progressed[trial.id][0])
    for trial in ready:
        if taken and (len(taken) == width or {trial.id, taken[0].id} & set(alone)
                      or not vectors.can_vmap(taken[0], trial)):
            continue
        if desk.take(trial.id):
            taken.append(trial)
        else:
            waiting = True
    now = states(sweep)[0] if taken else {}  # others may have ended them just before
    settled = [trial for trial in taken if now[trial.id] in SETTLED]
    for trial in settled:
        desk.release(trial.id)
    return [trial for trial in taken if trial not in settled], waiting or bool(settled)


def _train(sweep, chosen, cache, width):
    """Trains the chosen trials as far as they go, and returns the ids of those that must go on alone."""
    try:
        if len(chosen) > 1:
            return together.train(sweep, chosen, cache)
        _train_one(sweep, chosen[0], cache, vectors.alone(chosen[0].settings) if width > 1 else None)
    except lock.Busy as busy:
        print(f'lm: {busy}', flush=True)
        time.sleep(claims.PERIOD)
    except (loop.Preempted, KeyboardInterrupt):
        raise
    except (Exception, SystemExit) as fault:
        if full := _full(fault):
            raise config.Error(f'cannot write to {sweep.directory}: {full}; free some space and start again, '
                               'what is saved goes on.') from fault
        if len(chosen) > 1:
            reason = config.first_line(fault)
            print(f'{len(chosen)} trials fail as one program ({reason}); each goes on alone.', flush=True)
            return {trial.id for trial in chosen}
        if isinstance(fault, SystemExit):
            fault = config.Error(f'the code of the experiment called sys.exit({fault.code!r}); remove that.')
        fail(chosen[0], fault)
    return set()


def _full(fault):
    """Returns in words what a fault, or what caused it, says of a full disk, which no trial is to blame for, or ''."""
    words = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)]
    while fault is not None:
        for word in words:
            if word in str(fault):
                return word
        fault = fault.__cause__
    return ''


def _train_one(sweep, trial, cache, mesh):
    print(f'trial {trial.id}: {shown(trial)}', flush=True)
    run = runs.Run(trial.directory, config.Experiment(trial.settings, {}, sweep.directory / 'experiment.py'))
    run.stop = Judged(sweep, trial, processes.Stop())
    try:
        session.train(trial.settings, run, cache, mesh)
    except loop.Preempted:
        if run.stop.asked:
            raise
        print(f"trial {trial.id} is stopped: its loss lags behind the others'.", flush=True)
    finally:
        run.close()


def fail(trial, fault):
    """Records why a trial failed, so that it is not tried again, and says it."""
    print(f'trial {trial.id} failed: {config.first_line(fault)}', flush=True)
    if not isinstance(fault, config.Error):
        traceback.print_exception(fault)
    try:
        files.make_directory(trial.directory)
        files.replace(trial.directory / records.FAILED, json.dumps({'error': config.first_line(fault)}) + '\n')
    except OSError as error:
        raise config.Error(f'cannot write to {trial.directory}: {error.strerror}; free some space and '
                           'start again.') from fault
