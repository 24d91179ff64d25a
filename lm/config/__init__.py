"""Experiments as values: load a file, override by dotted key, flatten, diff, dump and fingerprint."""
from lm.config.annotations import (
    Count,
    Error,
    Fraction,
    FractionBelowOne,
    Interval,
    NonNegative,
    Positive,
    Size,
    close,
    first_line,
)
from lm.config.experiments import Experiment, build, load, open_file, sweep
from lm.config.overrides import ABSENT, check, diff, flatten, override
from lm.config.snapshots import dump, fingerprint
from lm.config.spelling import spelled

__all__ = [
    'ABSENT',
    'Count',
    'Error',
    'Experiment',
    'Fraction',
    'FractionBelowOne',
    'Interval',
    'NonNegative',
    'Positive',
    'Size',
    'build',
    'check',
    'close',
    'diff',
    'dump',
    'fingerprint',
    'first_line',
    'flatten',
    'load',
    'open_file',
    'override',
    'spelled',
    'sweep',
]
