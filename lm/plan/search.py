"""All layouts of an experiment ranked by formula; the smallest changes, or the smallest cluster, that make it fit."""
import math
import operator
from dataclasses import dataclass

from lm import hardware
from lm.plan import analytic, roofline
from lm.plan.layout import Layout, all_layouts, layout_of

MARGIN = 0.95  # share of a device's memory that the formulas, which are not exact, may fill


@dataclass(frozen=True)
class Candidate:
    """A Layout with its Roofline and {what: bytes} of one device, both by formula."""

    layout: Layout
    memory: dict
    roof: roofline.Roofline

    @property
    def peak(self):
        return sum(self.memory.values())

    @property
    def seconds(self):
        """Predicted seconds of a step."""
        return self.roof.seconds


def candidate_of(layout, workload, cluster):
    """Returns the Candidate of one Layout."""
    cost = analytic.step_cost(layout, workload, cluster.chip)
    return Candidate(layout, analytic.peak_memory(layout, workload),
                     roofline.roofline(cluster, layout.mesh, workload.shape.dtype, cost))


def ranked(settings, cluster):
    """Returns all Candidates of an experiment on a cluster: those that fit, fastest first, then the others by peak."""
    workload = analytic.workload_of(settings)
    candidates = [candidate_of(layout, workload, cluster) for layout in all_layouts(settings, cluster)]
    limit = MARGIN * cluster.chip.memory
    fitting = sorted((c for c in candidates if c.peak <= limit), key=operator.attrgetter('seconds'))
    return fitting + sorted((c for c in candidates if c.peak > limit), key=operator.attrgetter('peak'))


def remedies(settings, cluster, calibration=1.0, count=3):
    """Returns the `count` Candidates that fit with the fewest changes to the experiment's own layout, fastest first.

    `calibration` is the compiler's peak memory as a multiple of the formulas'.
    """
    own = layout_of(settings, cluster.devices)
    fitting = [c for c in ranked(settings, cluster) if calibration * c.peak <= MARGIN * cluster.chip.memory]
    return sorted(fitting, key=lambda c: (len(c.layout.changes(own)), c.seconds))[:count]


def smallest_cluster(settings, cluster, calibration=1.0, most=16):
    """Returns the name of the smallest cluster of the same chip, 2, 4, ... `most` times as large, that a layout fits.

    '' where there is none.
    """
    chip, workload, times = cluster.chip, analytic.workload_of(settings), 2
    while times <= most:
        name = _larger(cluster, times)
        peaks = (sum(analytic.peak_memory(layout, workload).values())
                 for layout in all_layouts(settings, hardware.cluster(name)))
        if any(calibration * peak <= MARGIN * chip.memory for peak in peaks):
            return name
        times *= 2
    return ''


def _larger(cluster, times):
    """Returns the name of a cluster `times` as large: one slice as long as there is one of that size, then several."""
    chip, count = cluster.chip, cluster.count * times
    if not chip.torus:
        return f'{cluster.chips * times}x{chip.name}'
    if count * math.prod(cluster.shape) > hardware.LARGEST[chip.name]:
        return f'{count}x{cluster.name.split("x", 1)[-1] if cluster.count > 1 else cluster.name}'
    chips = 2 ** math.ceil(math.log2(cluster.chips * times))  # slices named by a number have a power of two
    return f'{chip.name}-{chips * (2 if chip.named_by_core else 1)}'
