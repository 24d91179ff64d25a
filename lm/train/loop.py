"""The loop: runs the step over the data, saves, validates and records; and `lm train`."""
import contextlib
import sys
from functools import partial

import jax

from lm import config, records, train, trees
from lm.data import loader
from lm.data.cache import home
from lm.debug.replay import serve
from lm.parallel import processes
from lm.train import runs, spikes
from lm.train.monitor import FRESH, Log, NotFinite, due

STOPPED = 75  # exit code of a run that was asked to stop and has saved: EX_TEMPFAIL, try again


class Stopped(Exception):
    """The run was asked to stop, and has saved."""


def fit(settings, program, streams, run):
    """Trains to `settings.steps`, from the run's newest checkpoint if it has one, and returns the last State.

    `streams` are (training, validation or None). Raises Stopped, after saving, when `run.stop` says so.
    """
    (state, meta), setbacks = _restore(program, run.store, streams[0]), {}
    run.note_offset(int(state.step), meta['offset'])
    log = Log(settings, run, streams[0])
    while int(state.step) < settings.steps:
        jumped = False
        try:
            state = _advance(settings, program, streams, log, (state, meta))
        except spikes.Spike:
            jumped = True
        except NotFinite as fault:
            batch = fault.args[0] + meta['offset']
            state, meta = _restore(program, run.store, streams[0])
            step = int(state.step)
            setbacks[step] = setbacks.get(step, 0) + 1
            if setbacks[step] > 3:
                raise config.Error(f'the loss is not finite whichever batches follow step {step}; '
                                   f'try optimizer.peak={settings.optimizer.peak / 3:.1g}.') from fault
            meta = {**meta, 'offset': batch - step}
            run.rewind(step)
            run.note_offset(step, meta['offset'])
        if jumped:  # only here does the exception no longer hold the state that is left
            state, meta = _restore(program, run.store, streams[0])
            run.rewind(int(state.step))
    return state


def _restore(program, store, stream):
    """Returns (state, meta) of the newest checkpoint, or of a new run; raises config.Error if its data differs."""
    fresh = {**FRESH, 'data': dict(stream.fingerprint)}
    found = store.restore(program.abstract)
    if found is None:
        with jax.set_mesh(program.mesh):
            return program.init(), fresh
    state, meta = found
    runs.check_data(meta, fresh)
    return state, {**fresh, **meta}


def _advance(settings, program, streams, log, begun):
    """Returns the State after the last step; raises Stopped, NotFinite or spikes.Spike on the way."""
    stream, valid = streams
    state, meta = begun
    run = log.run
    start = int(state.step)
    batch_at = partial(serve, stream, program.mesh, meta['offset'])
    log.begin(meta)
    with jax.set_mesh(program.mesh), contextlib.closing(loader.prefetch(batch_at, start)) as batches:
        for step, batch in batches:
            log.watch.look(program, state, batch, step + 1)
            state, measured = program.step(state, batch)
            log.push(step + 1, measured)
            stopping, last = run.stop.reached(step + 1), step + 1 == settings.steps
            if stopping or last or due(step + 1, settings.cadence.save):
                log.flush(hasty=stopping)
                if stopping or last or not log.bad:
                    run.store.save(step + 1, state, log.kept(meta))
            if stopping:
                raise Stopped
            if valid and not last and due(step + 1, settings.cadence.eval):
                log.flush()
                validate(settings, program, state, valid, run)
            if last:
                break
    run.store.wait()
    return state


def validate(settings, program, state, valid, run):
    """Records the validation loss of a State, on all batches after the last step, and returns {name: value}."""
    step = int(state.step)
    batches = settings.cadence.eval_batches if step < settings.steps else 0
    params = settings.optimizer.averaged(state.optimizer, state.params)
    scores = settings.objective.score(settings.model, params, valid, program.mesh, batches)
    run.writer.write(step, {f'valid/{name}': value for name, value in scores.items()})
    run.store.score(step, scores['loss'])
    return scores


def train_in(settings, run, cache, mesh=None):
    """Trains to the end, on `mesh` if given instead of the settings' own, and says how it ended or had ended before."""
    if processes.decide(lambda: settings.steps in run.store.steps() and _scored(settings, run.directory)):
        print(f'{run.directory} is finished: {settings.steps} steps.')
        return
    run.stop.heed()
    data = settings.data
    stream = data.open(cache, 'train')
    processes.agree(stream.fingerprint)
    processes.decide(lambda: runs.keep_tokenizer(run.directory, home(data.train, data.tokenizer, cache)))
    valid = data.open(cache, 'valid') if data.valid else None
    check_vocabulary(settings.model, stream.encoder)
    built = train.program(settings, mesh)
    print(f'{trees.count(built.abstract.params):,} parameters, {stream.rows:,} rows of {data.context} tokens, '
          f'mesh {dict(built.mesh.shape)} of {jax.devices()[0].device_kind}, run {run.directory}', flush=True)
    state = fit(settings, built, (stream, valid), run)
    summarise(settings, built, state, (stream, valid), run)


def _scored(settings, directory):
    """Returns whether the last validation is on record, which a run may have been killed before."""
    return not settings.data.valid or any('valid/loss' in record for record in records.read(directory)
                                          if record['step'] == settings.steps)


def check_vocabulary(model, encoder):
    """Raises config.Error unless the model has as many tokens as the tokenizer."""
    if model.vocab != encoder.size:
        raise config.Error(f'model.vocab={model.vocab} and the tokenizer has {encoder.size} tokens; '
                           f'try model.vocab={encoder.size}.')


def summarise(settings, built, state, streams, run):
    """Prints how the run ended: validation scores beside the baselines', a sample, and where it all is."""
    stream, valid = streams
    if valid:
        scores = validate(settings, built, state, valid, run)
        print('\n'.join(settings.objective.summary(scores, settings.data)))
    params = settings.optimizer.averaged(state.optimizer, state.params)
    with jax.set_mesh(built.mesh):
        sample(settings, params, stream.encoder, run.directory, sys.stdout)
    print(f'run: {run.directory}')


def sample(settings, params, encoder, directory, out):
    """Writes a sample to `out` as it grows, and to sample.txt in a run's directory."""
    text = settings.objective.show(settings.model, params, encoder, out)
    if processes.first():
        (directory / 'sample.txt').write_text(text, encoding='utf-8')
