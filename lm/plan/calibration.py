"""The efficiency of products that `lm bench` measured on a chip, kept beside compiled steps: it replaces the fitted."""
import dataclasses
import json

from lm import config
from lm.config import files
from lm.plan import compiler

LEAST = 1 / 3  # share of a predicted step that products take, at least, for a measured step to tell their efficiency


def calibrated(cluster):
    """Returns the Cluster with the efficiency that was measured on its chip, or as it is where none was."""
    path, remedy = _path(cluster.chip), 'delete it, or run lm bench on that chip again.'
    about = files.read_json(path, {'efficiency': float | int}, remedy, optional=True)
    if about is None:
        return cluster
    if not 0 < about['efficiency'] <= 1:
        raise config.Error(f'{path} is damaged (efficiency is {about["efficiency"]:.3g}, not in (0, 1]); {remedy}')
    chip = dataclasses.replace(cluster.chip, efficiency=about['efficiency'], measured=True)
    return dataclasses.replace(cluster, chip=chip)


def record(chip, roof, seconds):
    """Keeps the efficiency at which a step's Roofline gives the measured seconds, and returns it.

    None, and nothing is kept, where products are too small a part of the step to tell.
    """
    products = roof.parts['products']
    if products < LEAST * roof.seconds:
        return None
    rest = sum(roof.parts.values()) - products
    efficiency = min(1.0, roof.nominal['products'] / max(seconds - rest, roof.nominal['products']))
    about = {'chip': chip.name, 'efficiency': efficiency, 'step_seconds': seconds}
    try:
        files.replace(_path(chip), files.sealed(json.dumps(about)) + '\n')
    except OSError as error:
        raise config.Error(f'cannot write {_path(chip)}: {error.strerror}; free some space.') from error
    return efficiency


def _path(chip):
    return compiler.cache_directory() / f'efficiency-{chip.name}.json'
