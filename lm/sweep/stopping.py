"""The stop request of a trial's run: a signal to its process, or the sweep's stopping rule."""
from lm.sweep.trials import judged_every, open_sweep, states


class Judged:
    """The stop request of a trial's run: that of its process, or the sweep's rule, one step after each validation.

    `stop` is the process's own, a processes.Stop, which the trials of one program share.
    asked: whether it was that one.
    """

    def __init__(self, sweep, trial, stop):
        self.sweep, self.trial, self.stop, self.asked = sweep, trial, stop, False

    def install(self):
        """Makes signals ask for a stop."""
        self.stop.install()

    def restore(self):
        """Leaves signals as they were."""
        self.stop.restore()

    def reached(self, step):
        """Returns whether the run stops after `step`."""
        self.asked = self.stop.reached(step)
        return self.asked or self._lags(step - 1)

    def _lags(self, step):
        """Returns whether the sweep's rule stops the trial by its losses at `step`, as files are now."""
        rule = self.sweep.rule
        if not rule or step % judged_every(self.sweep.base) or not rule.judges(step):
            return False
        return states(open_sweep(self.sweep.directory, self.sweep.code))[0][self.trial.id] == 'stopped'
