"""`lm scaling`: the scaling law of a sweep of sizes."""
from lm.pages.document import write
from lm.scaling import backtests, laws, points
from lm.scaling.page import render
from lm.scaling.show import Findings, Prediction, advise, as_json, as_text, overridden, size_of

JAX = False  # starts no device


def main(*directories: str, at: tuple = (), predict: tuple = (), budget: tuple[float, ...] = (),
         metric: str = 'valid/loss', non_embedding: bool = False, json: bool = False, html: str = '',
         trust: bool = False):
    """Fits L(N, D) = E + A/N^alpha + B/D^beta to the finished runs of a sweep of sizes, and predicts larger ones.

    Args:
        directories: directories of sweeps or of runs; for each N and D the settings of lowest loss are taken, of
            those with most seeds
        at: predict a run of so many parameters and tokens, e.g. N=1e9,D=2e10
        predict: predict the largest run with other settings, e.g. 'model.width=512 steps=20000'
        budget: recommend N and D for so many FLOPs of training, e.g. 1e21
        metric: a metric recorded at the end of a run, e.g. valid/bits_per_byte
        non_embedding: count only parameters between embedding and output, as Kaplan et al. did
        json: print all numbers as JSON
        html: file to write a page with plots to; the page needs no network
        trust: execute the runs' own code, where a model is defined in an experiment, to count its parameters
    """
    sizes = [size_of(text) for text in at]
    runs = points.read(directories, metric, non_embedding, trust)
    sizes += [overridden(text, runs) for text in predict]
    tests = backtests.backtest(runs.n, runs.d, runs.loss)
    fit = backtests.widened(laws.fit(runs.n, runs.d, runs.loss), tests)
    predictions = [Prediction(run, n, d, *fit.predict(n, d), fit.times(n, d)) for run, n, d in sizes]
    findings = Findings(runs, fit, predictions, [advise(fit, flops) for flops in budget], tests)
    if html:
        write(html, render(findings))
    print(as_json(findings) if json else as_text(findings))
