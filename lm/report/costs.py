"""Training FLOPs per token of recorded models."""
import json
import os

from lm.config import files, first_line


def key(settings):
    """Returns a text that is the same for settings whose FLOPs per token are: those of the model, and the context."""
    return json.dumps({name: value for name, value in settings.items()
                       if name == 'data.context' or name.partition('.')[0] == 'model'}, sort_keys=True)


def per_token(trials):
    """Returns {key: training FLOPs per token} of the [Trial] whose models can be counted."""
    counts = {name: _flops(trial) for name, trial in {key(trial.settings): trial for trial in trials}.items()}
    return {name: count for name, count in counts.items() if count}


def _flops(trial):
    """Returns the training FLOPs per token; None, with a warning, for a model that cannot be built or counted."""
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # nothing is computed; leave accelerators free
    try:
        return float(trial.model().flops(trial.settings['data.context']))
    except Exception as error:  # of a model of the experiment's own
        files.warn(f'the FLOPs of {trial.directory} are not counted: {first_line(error)}')
        return None
