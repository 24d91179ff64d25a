"""Fits what programs reach of the nominal rates (hardware.Reached, Chip.efficiency) to published step times.

    python -m lm.plan.fit plan_measurements.json

It prints the constants to write into lm/hardware.py, and how well steps are predicted whose model, and whose source,
was left out of the fit. The fit is a maximum a posteriori: errors of log seconds are robust (soft L1, a scale of 10%),
and each constant has a wide prior with a physical centre, so that chips with few rows lean on their platform.
"""
import dataclasses
import math
import sys

import numpy as np
from scipy.optimize import least_squares

from lm import hardware
from lm.plan import published, roofline

SCALE = 0.1  # of errors of log seconds: larger ones count less than squared
SPREAD = 0.15  # prior: standard deviation of the log efficiencies of a platform's chips around their mean
EFFICIENCY = (0.75, 0.3)  # prior of that mean: centre, and standard deviation of its logarithm
PRIORS = {  # of hardware.Reached: centre, and standard deviation of the logarithm
    'tpu': {'attention': (0.4, 0.5), 'memory': (0.7, 0.5), 'links': (0.3, 0.7), 'network': (4, 0.7)},
    'cuda': {'attention': (0.4, 0.5), 'memory': (0.7, 0.5), 'links': (0.5, 0.7), 'network': (1, 0.7)}}


@dataclasses.dataclass(frozen=True)
class Step:
    """A Row with its nominal seconds and attention FLOPs by head size."""

    row: published.Row
    chip: hardware.Chip
    nominal: dict
    attention: dict

    def roofline(self, efficiency, reached):
        """Returns the Roofline under other constants."""
        chip = dataclasses.replace(self.chip, efficiency=efficiency)
        return roofline.Roofline(self.nominal, roofline.added(chip, self.nominal, self.attention, reached))


def steps_of(rows):
    """Returns the Steps of published Rows."""
    steps = []
    for row in rows:
        cluster, mesh, dtype, cost = published.cost_of(row)
        roof = roofline.roofline(cluster, mesh, dtype, cost)
        steps.append(Step(row, cluster.chip, roof.nominal, cost['attention']))
    return steps


def generation(chip):
    """Returns the name under which a chip's efficiency is fitted: both A100s are one."""
    return chip.name.partition('-')[0]


def fit(steps, platform):
    """Returns ({chip: efficiency}, mean efficiency, Reached) of one platform's Steps, all constants positive."""
    chips, priors = sorted({generation(step.chip) for step in steps}), PRIORS[platform]
    groups = [(step.row.model, step.chip.name) for step in steps]
    weights = np.array([1 / math.sqrt(groups.count(group)) for group in groups])  # rows of one model are alike

    def unpack(x):
        values = np.exp(x)
        return dict(zip(chips, values[1:])), values[0], hardware.Reached(*values[1 + len(chips):])

    def residuals(x):
        efficiency, _, reached = unpack(x)
        errors = [math.log(step.roofline(efficiency[generation(step.chip)], reached).seconds / step.row.measured_step_s)
                  for step in steps]
        robust = np.sqrt(np.log1p((np.array(errors) / SCALE) ** 2))
        centres = [EFFICIENCY, *((math.exp(x[0]), SPREAD) for _ in chips), *priors.values()]
        return np.r_[weights * robust, [(value - math.log(centre)) / sd
                                        for value, (centre, sd) in zip(x, centres, strict=True)]]
    start = np.log([EFFICIENCY[0]] * (1 + len(chips)) + [centre for centre, _ in priors.values()])
    upper = np.r_[np.zeros(1 + len(chips)), [0, np.log(2), 0, np.log(20)]]  # no product is faster than the peak
    return unpack(least_squares(residuals, np.minimum(start, upper - 1e-3), bounds=(-10, upper)).x)


def left_out(steps, platform, group):
    """Returns [(Step, Roofline)] of one platform, each from a fit without the Steps of the same group(row)."""
    steps = [step for step in steps if step.chip.platform == platform]
    pairs = []
    for name in sorted({group(step.row) for step in steps}):
        efficiency, mean, reached = fit([step for step in steps if group(step.row) != name], platform)
        pairs += [(step, step.roofline(efficiency.get(generation(step.chip), mean), reached)) for step in steps
                  if group(step.row) == name]
    return pairs


def summary(pairs):
    """Returns (median relative error, share inside the range) of (Step, Roofline)."""
    errors = published.summary([(roof, step.row.measured_step_s) for step, roof in pairs])
    return errors['median_error'], errors['inside']


def framework(row):
    """Returns the repository that a row is from."""
    return row.source.partition('@')[0].partition(' ')[0]


def main(path):
    """Prints the constants fitted to a table, and the errors with models and with frameworks left out."""
    steps = steps_of(published.read(path)[0])
    for platform in PRIORS:
        efficiency, mean, reached = fit([step for step in steps if step.chip.platform == platform], platform)
        print(platform, {chip: round(float(value), 3) for chip, value in efficiency.items()}, 'mean', round(mean, 3))
        print({name: round(float(value), 3) for name, value in vars(reached).items()})
        for title, group in (('model', lambda row: row.model), ('framework', framework)):
            pairs = left_out(steps, platform, group)
            print(f'  without its {title}: median error {summary(pairs)[0]:.3f}, inside {summary(pairs)[1]:.2f}')
            for name in sorted({group(step.row) for step, _ in pairs}):
                part = [pair for pair in pairs if group(pair[0].row) == name]
                print(f'    {name:<32}{len(part):>4}{summary(part)[0]:>8.3f}{summary(part)[1]:>6.2f}')


if __name__ == '__main__':
    main(*sys.argv[1:])
