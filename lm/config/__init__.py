"""Experiments as values: load a file, override by dotted key, flatten, diff, dump and fingerprint."""
from lm.config.annotations import Error, close, first_line, positive
from lm.config.experiments import Experiment, build, load, open_file, sweep
from lm.config.overrides import ABSENT, diff, flatten, override
from lm.config.snapshots import dump, fingerprint
from lm.config.spelling import spelled

__all__ = ['ABSENT', 'Error', 'Experiment', 'build', 'close', 'diff', 'dump', 'fingerprint', 'first_line', 'flatten',
           'load', 'open_file', 'override', 'positive', 'spelled', 'sweep']
