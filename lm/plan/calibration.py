"""The efficiency of products that `lm bench` measured on a chip, kept beside compiled steps: it replaces the fitted."""
import dataclasses
import json

from lm.config import files
from lm.plan import compiler

LEAST = 1 / 3  # share of a predicted step that products take, at least, for a measured step to tell their efficiency


def calibrated(cluster):
    """Returns the Cluster with the efficiency that was measured on its chip, or as it is where none was."""
    path = _path(cluster.chip)
    if not path.exists():
        return cluster
    chip = dataclasses.replace(cluster.chip, efficiency=json.loads(path.read_text())['efficiency'], measured=True)
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
    files.replace(_path(chip), json.dumps({'chip': chip.name, 'efficiency': efficiency, 'step_seconds': seconds}))
    return efficiency


def _path(chip):
    return compiler.cache_directory() / f'efficiency-{chip.name}.json'
