"""Training FLOPs per token of recorded models."""
import json
import os

from lm import config


def key(settings):
    """Returns a text that is the same for settings whose FLOPs per token are: those of the model, and the context."""
    return json.dumps({name: value for name, value in settings.items()
                       if name == 'data.context' or name.partition('.')[0] == 'model'}, sort_keys=True)


def per_token(trials):
    """Returns {key: training FLOPs per token} of the [Trial] whose models can be counted."""
    counts = {name: _flops(trial) for name, trial in {key(trial.settings): trial for trial in trials}.items()}
    return {name: count for name, count in counts.items() if count}


def _flops(trial):
    """Returns the training FLOPs per token, None for a model that cannot be counted or whose type no longer exists."""
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # nothing is computed; leave accelerators free
    try:
        model = config.build(trial.about['config']['model'], trial.directory / 'experiment.py')
        return float(model.flops(trial.settings['data.context']))
    except Exception:  # of a damaged record, and of an experiment file that defines the type
        return None
