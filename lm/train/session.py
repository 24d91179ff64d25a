"""A run from its directory to its last line: data is opened and checked, the loop runs, the end is scored and shown."""
import sys

import jax

from lm import config, records, trees
from lm.config import files
from lm.data.cache import fit, home
from lm.parallel import processes
from lm.train import loop, runs, step
from lm.train.monitor import Monitor


def train(settings, run, cache, mesh=None):
    """Trains to the end, on `mesh` or the settings' own, and prints how the run ended or had ended before.

    Raises config.Error where its last loss is not finite.
    """
    if processes.decide(lambda: settings.steps in run.store.steps() and bool(_last(settings, run.directory))):
        _check_finite(settings, run)
        processes.decide(lambda: mend_tokenizer(run.directory, settings, cache))
        print(f'{run.directory} is finished: {settings.steps} steps.')
        return
    run.stop.install()
    monitor = open_data(settings, run, cache)
    valid = settings.data.open(cache, 'valid') if settings.data.valid else None
    if valid:
        print(settings.data.accept(valid, 'valid'), flush=True)
    program = step.program(settings, mesh)
    print(f'{trees.count(program.abstract.params):,} parameters, {monitor.stream.rows:,} rows of '
          f'{settings.data.context} tokens, mesh {dict(program.mesh.shape)} of {jax.devices()[0].device_kind}, '
          f'run {run.directory}', flush=True)
    state = loop.fit(program, [monitor], valid)
    if valid:
        (scores,) = loop.validate(program, [monitor], valid, state)
        print('\n'.join(settings.objective.summary(scores, settings.data)))
    show(program, [monitor], state)
    print(f'run: {run.directory}')
    _check_finite(settings, run)


def _last(settings, directory):
    """Returns [loss] after the last step, None for one that is not finite; [] before it is on record.

    It is the validation loss, without held-out text that of the step. A run may have been killed before it.
    """
    name = 'valid/loss' if settings.data.valid else 'loss'
    return [record[name] for record in records.read(directory) if record['step'] == settings.steps and name in record]


def mend_tokenizer(directory, settings, cache):
    """Makes the tokenizer of a finished run again where it is missing or damaged; a warning says where it cannot."""
    data = settings.data
    if not (fault := runs.tokenizer_fault(directory, data.tokenizer)):
        return
    try:
        fingerprint = {'tokenizer': fit(data.train, data.tokenizer, cache).exact().fingerprint()}
        runs.keep_tokenizer(directory, data.tokenizer, fingerprint, home(data.train, data.tokenizer, cache))
    except config.Error as error:
        files.warn(f'{fault}; it cannot be made again: {error}')


def _check_finite(settings, run):
    if processes.decide(lambda: _last(settings, run.directory)[-1:]) == [None]:
        raise config.Error(f'the last loss of {run.directory} is not finite; it is saved, and of no use: look for the '
                           f'first step that is not in {records.RECORD}, and try a smaller optimizer.peak than '
                           f'{settings.optimizer.peak:g}.')


def open_data(settings, run, cache, stream=None):
    """Returns the Monitor of a run with its training data, opened where no `stream` is given; keeps its tokenizer.

    Raises config.Error where hosts or the model do not agree with the data.
    """
    data = settings.data
    if stream is None:
        stream = data.open(cache, 'train')
        print(data.accept(stream), flush=True)
    processes.agree(stream.fingerprint)
    processes.decide(lambda: runs.keep_tokenizer(
        run.directory, data.tokenizer, stream.fingerprint, home(data.train, data.tokenizer, cache)))
    check_vocabulary(settings, stream.encoder)
    return Monitor(settings, run, stream)


def check_vocabulary(settings, encoder):
    """Raises config.Error unless the model has as many tokens as the tokenizer, and those that its objective reserves.
    """
    model, objective = settings.model, settings.objective
    if model.vocab != encoder.size:
        raise config.Error(f'model.vocab={model.vocab} and the tokenizer has {encoder.size} tokens; '
                           f'try model.vocab={encoder.size}.')
    for token in objective.reserved(model):
        if token not in encoder.controls or token == encoder.eos:
            names = ', '.join(f"'<{number}>'" for number in range(len(objective.reserved(model))))
            tokenizer = type(settings.data.tokenizer).__name__
            raise config.Error(f'{type(objective).__name__} keeps token {token} for itself, which is one of the text; '
                               f'try data.tokenizer="Controls({tokenizer}(), ({names},))" and a larger model.vocab.')


def show(program, monitors, state):
    """Prints what each run's objective shows of its last state, and writes it to sample.txt in the run's directory.

    Where that fails it warns in one line: what comes after a run's last validation decides over no exit code.
    """
    for monitor, own in zip(monitors, program.split(state), strict=True):
        settings, directory = monitor.settings, monitor.run.directory
        if not monitor.open:
            continue
        params = settings.optimizer.averaged(own.optimizer, own.params)
        prefix = settings.data.prefix(monitor.stream.encoder)
        try:
            with program.context():
                text = settings.objective.show(settings.model, params, monitor.stream.encoder, prefix)
            if text and processes.first():
                (directory / 'sample.txt').write_text(text, encoding='utf-8')
                print(f'sample:\n{text}')
        except BrokenPipeError:
            raise
        except Exception as error:
            print(f'lm: {directory} is finished, without its sample: {config.first_line(error)}', file=sys.stderr)
