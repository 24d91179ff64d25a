"""Training FLOPs per token of recorded models."""
import json
import os

from lm import config

# Fields of a model that do not change its matrix products.
FREE = ('position', 'dropout', 'z_loss', 'smoothing', 'norm', 'norm_place', 'norm_epsilon', 'qk_norm', 'dtype', 'remat',
        'unroll', 'kernel', 'loss_parts', 'quantized', 'pipeline')
MOST = 30  # models counted at most; each takes some tenths of a second


def key(settings):
    """Returns a text that is the same for settings whose FLOPs per token are: those of the model, and the context."""
    kept = {}
    for name, value in settings.items():
        top, _, inside = name.partition('.')
        if name == 'data.context' or (top == 'model' and inside.split('.')[0] not in FREE):
            kept[name] = value
    return json.dumps(kept, sort_keys=True)


def per_token(trials):
    """Returns {key: training FLOPs per token} of the [Trial] whose models can be counted, None for more than MOST."""
    distinct = {key(trial.settings): trial for trial in trials}
    if len(distinct) > MOST:
        return None
    counts = {name: _flops(trial) for name, trial in distinct.items()}
    return {name: count for name, count in counts.items() if count}


def _flops(trial):
    """Returns the training FLOPs per token, None for a model that cannot be counted or whose type no longer exists."""
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # only shapes are computed; leave accelerators free
    import jax

    from lm.models import flops
    try:
        model = config.build(trial.about['config']['model'], trial.directory / 'experiment.py')
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        return float(flops.flops_per_token(model, shapes, trial.settings['data.context']))
    except (config.Error, AttributeError, TypeError):
        return None
