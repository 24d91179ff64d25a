"""The best of all layouts of an experiment: ranked by formula; and the cheapest changes that make one fit."""
import math
import operator
from dataclasses import dataclass

from lm import hardware
from lm.plan import analytic, layouts, roofline

MARGIN = 0.95  # of the memory, which the formulas may be off by


@dataclass(frozen=True)
class Candidate:
    """A Layout with what the formulas say of it: bytes by what they hold, and seconds."""

    layout: layouts.Layout
    memory: dict
    roof: roofline.Roofline

    @property
    def peak(self):
        return sum(self.memory.values())

    @property
    def seconds(self):
        """Seconds of a step between those of perfect overlap and of none."""
        return (self.roof.least + self.roof.most) / 2


def judge(layout, subject, cluster, seen):
    """Returns the Candidate of one Layout."""
    measured = analytic.measure(layout, subject, seen)
    roof = roofline.roofline(cluster, layout.sizes, subject.settings.model.dtype, measured)
    return Candidate(layout, analytic.memory(layout, subject, cluster.chip.platform), roof)


def ranked(settings, cluster):
    """Returns all Candidates of an experiment on a cluster: those that fit, fastest first, then the others by peak."""
    layouts.check(settings)
    subject, seen = analytic.subject(settings), analytic.seen_share(settings)
    found = [judge(layout, subject, cluster, seen) for layout in layouts.every(settings, cluster)]
    fits = sorted((c for c in found if c.peak <= MARGIN * cluster.chip.memory), key=operator.attrgetter('seconds'))
    rest = sorted((c for c in found if c.peak > MARGIN * cluster.chip.memory), key=operator.attrgetter('peak'))
    return fits + rest


def remedies(settings, cluster, off=1.0, count=3):
    """Returns the Candidates that fit with the fewest changes to the experiment's own layout, then the least time.

    `off` is how many times more the compiler takes than the formulas say.
    """
    own = layouts.given(settings, cluster.devices)
    limit = MARGIN * cluster.chip.memory
    found = [c for c in ranked(settings, cluster) if off * c.peak <= limit]
    found.sort(key=lambda c: (len(c.layout.changes(own)), c.seconds))
    return found[:count]


def enough(settings, cluster, off=1.0, most=16):
    """Returns the name of the smallest cluster of the same chip, up to `most` times as large, on which a layout fits.

    '' where there is none.
    """
    chip, times, subject = cluster.chip, 2, analytic.subject(settings)
    while times <= most:
        number = cluster.chips * times
        cores = number * (2 if chip.named_by_core else 1)
        larger = f'{chip.name}-{cores}' if chip.torus else f'{number}x{chip.name}'
        if chip.torus and cluster.count * times * math.prod(cluster.shape) > hardware.LARGEST[chip.name]:
            larger = f'{cluster.count * times}x{cluster.name.split("x", 1)[-1] if cluster.count > 1 else cluster.name}'
        peaks = (sum(analytic.memory(layout, subject, chip.platform).values())
                 for layout in layouts.every(settings, hardware.cluster(larger)))
        if any(off * peak <= MARGIN * chip.memory for peak in peaks):
            return larger
        times *= 2
    return ''
