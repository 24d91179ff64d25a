"""Early stopping of trials by rules over the recorded losses, which all workers read, so that all decide alike."""
import abc
import dataclasses
import statistics

from lm.config import Count, Error


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
    """Stops bad trials early, none before step `first`."""

    first: int

    def __post_init__(self):
        if self.first < 1:
            raise Error(f'first={self.first} is not a step to judge at; try the first step with a validation.')

    @abc.abstractmethod
    def allows(self, scores, others):
        """Returns whether a trial continues. scores: its {step: loss}. others: those of all trials, this one included.

        A loss of None, not finite, is the worst.
        """

    @abc.abstractmethod
    def judges(self, step):
        """Returns whether a trial may be stopped by its loss at `step`."""


@dataclasses.dataclass(frozen=True)
class Halving(Rule):
    """Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934).

    At the rungs, steps first * factor ** k, a trial continues while its loss is among the best 1/`factor` of the losses
    there. The best so far always continues, and a stopped trial resumes when enough others turn out worse.
    """

    factor: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.factor < 2:
            raise Error(f'factor={self.factor} stops no trial; try factor=3.')

    def judges(self, step):
        rung = self.first
        while rung < step:
            rung *= self.factor
        return rung == step

    def allows(self, scores, others):
        rungs = [step for step in scores if self.judges(step)]
        return not rungs or _rank(scores, others, max(rungs)) < max(1, _count(others, max(rungs)) // self.factor)


def _count(others, step):
    return sum(step in curve for curve in others)


def _rank(scores, others, step):
    """Returns how many trials had a lower loss at `step`."""
    return sum(_number(curve[step]) < _number(scores[step]) for curve in others if step in curve)


def _number(loss):
    return float('inf') if loss is None else loss


@dataclasses.dataclass(frozen=True)
class Median(Rule):
    """The median rule (Golovin et al. 2017, Google Vizier).

    A trial stops when its best loss so far is above the median of the other trials' mean losses up to the same step, if
    at least `least` other trials have reached it.
    """

    least: Count = 3

    def judges(self, step):
        return step >= self.first

    def allows(self, scores, others):
        if not scores or max(scores) < self.first:
            return True
        now = max(scores)
        rivals = [curve for curve in others if curve is not scores and curve and max(curve) >= now]
        if len(rivals) < self.least:
            return True
        means = [statistics.fmean(_number(loss) for step, loss in curve.items() if step <= now) for curve in rivals]
        return min(map(_number, scores.values())) <= statistics.median(means)
