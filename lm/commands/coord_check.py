"""`lm coord-check`: whether activations keep their size as a model widens."""
from pathlib import Path

import jax
import numpy as np

from lm import config
from lm.data.cache import root
from lm.debug.coord_check import as_page, as_text, at_peak_rate, measure, parse_widths, rows, verdict, widened
from lm.pages.document import write
from lm.train import Config, session


def main(experiment: str, *overrides: str, widths: str = '64,128,256,512', steps: int = 4, seeds: int = 3,
         html: str = '', cache: str = ''):
    """Says whether activations keep their size as a model widens, which muP promises; exits with 1 where not.

    Args:
        experiment: the experiment file
        overrides: values to set, e.g. model.base.width=64 model.base.heads=4
        widths: of the models to train; what model.base names grows in proportion
        steps: how many steps each is trained at the peak rate
        seeds: how many times, from different initial values
        html: file to write the picture to, which needs no network
        cache: directory of token caches, by default $LM_CACHE or ~/.cache/lm
    """
    sizes = parse_widths(widths)
    for name, value in ('steps', steps), ('seeds', seeds):
        if value < 1:
            raise config.Error(f'--{name}={value} is not positive; try --{name}=3.')
    settings = at_peak_rate(config.load(experiment, overrides, Config).config, steps)
    for width in sizes:
        widened(settings, width)
    stream = settings.data.open(root(cache), 'train')
    session.check_vocabulary(settings, stream.encoder)
    batches = jax.tree.map(lambda *arrays: np.stack(arrays), *map(stream.batch_at, range(steps)))
    trace = measure(settings, sizes, batches, seeds)
    table = rows(trace)
    passed, message = verdict(table, settings)
    print(f'{as_text(trace, table)}\n\n{message}')
    if html:
        write(html, as_page(trace, table, f'Activations against width: {Path(experiment).stem}', message))
    return 0 if passed else 1
