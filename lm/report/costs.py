"""What training on a token costs a model, counted from its record."""
import json
import os

from lm import config

# Fields of a model that change nothing in its matrix products.
FREE = ('position', 'dropout', 'z_loss', 'smoothing', 'norm', 'norm_place', 'norm_epsilon', 'qk_norm', 'dtype', 'remat',
        'unroll', 'kernel', 'loss_parts', 'quantized', 'pipeline')
MOST = 30  # models to count, at some tenths of a second each


def key(settings):
    """Returns a text that two variants share where a token costs them the same: their model and context."""
    kept = {name: value for name, value in settings.items() if name == 'data.context' or _counts(name.split('.'))}
    return json.dumps(kept, sort_keys=True)


def _counts(path):
    return path[0] == 'model' and (len(path) == 1 or path[1] not in FREE)


def per_token(trials):
    """Returns {key: FLOPs a token, forward and backward} of the [Trial] whose models can be counted.

    Returns None where there are more than MOST models.
    """
    distinct = {key(trial.settings): trial for trial in trials}
    if len(distinct) > MOST:
        return None
    found = {name: _counted(trial) for name, trial in distinct.items()}
    return {name: count for name, count in found.items() if count}


def _counted(trial):
    """Returns the model FLOPs of a token, None for a model of a kind that cannot be counted or no longer exists."""
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # shapes alone are read: accelerators are left to those who train
    import jax

    from lm.models import flops
    try:
        model = config.build(trial.about['config']['model'], trial.directory / 'experiment.py')
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return float(flops.flops_per_token(model, shapes, trial.settings['data.context']))
    except (config.Error, AttributeError, TypeError):
        return None
