"""Which trials of a sweep go on: rules over the losses on record, which all workers read and so decide alike."""
import abc
import dataclasses
import statistics

from lm.config import Error


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
    """Stops trials that lag; `first` is the step before which none is stopped."""

    first: int

    def __post_init__(self):
        if self.first < 1:
            raise Error(f'first={self.first} is not a step to judge at; try the first step that is validated.')

    @abc.abstractmethod
    def allows(self, scores, others):
        """Returns whether a trial with {step: loss} `scores` goes on, `others` being those of all trials, this one too.

        A loss of None, not finite, is the worst.
        """

    @abc.abstractmethod
    def judges(self, step):
        """Returns whether a trial may be stopped by its loss at `step`."""


@dataclasses.dataclass(frozen=True)
class Halving(Rule):
    """Asynchronous successive halving (Li et al. 2018, arXiv:1810.05934).

    At the rungs, steps first * factor ** k, a trial goes on while its loss is among the best 1/`factor` of the losses
    there. The best so far always goes on, and one that was stopped
    does when enough others turn out worse.
    """

    factor: int = 3

    def __post_init__(self):
        super().__post_init__()
        if self.factor < 2:
            raise Error(f'factor={self.factor} halves nothing; try factor=3.')

    def judges(self, step):
        rung = self.first
        while rung < step:
            rung *= self.factor
        return rung == step

    def allows(self, scores, others):
        rungs = [step for step in scores if self.judges(step)]
        return not rungs or _rank(scores, others, max(rungs)) < max(1, _count(others, max(rungs)) // self.factor)


def _count(others, step):
    return sum(step in each for each in others)


def _rank(scores, others, step):
    """Returns how many trials had a lower loss at `step`."""
    return sum(_number(each[step]) < _number(scores[step]) for each in others if step in each)


def _number(loss):
    return float('inf') if loss is None else loss


@dataclasses.dataclass(frozen=True)
class Median(Rule):
    """The median rule (Golovin et al. 2017, Google Vizier).

    A trial stops when its best loss so far is above the median of the other trials' mean losses up to the same step,
    once `least` trials have come that far.
    """

    least: int = 3

    def judges(self, step):
        return step >= self.first

    def allows(self, scores, others):
        if not scores or max(scores) < self.first:
            return True
        now, rivals = max(scores), [each for each in others if each is not scores and each and max(each) >= max(scores)]
        if len(rivals) < self.least:
            return True
        means = [statistics.fmean(_number(loss) for step, loss in each.items() if step <= now) for each in rivals]
        return min(map(_number, scores.values())) <= statistics.median(means)
