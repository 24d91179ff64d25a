"""`lm report`: which differences between runs are real."""
from lm.pages.document import write
from lm.report import expectations, page, study
from lm.report.show import as_json, as_text

JAX = False  # starts no device


def main(*directories: str, html: str = '', json: bool = False, expect: tuple = (), baseline: str = '',
         margin: float | None = None, metric: str = '', rate: str = 'optimizer.peak',
         trust: bool = False):
    """Tells which differences between runs are real: paired by seed, with intervals, Holm-corrected, with verdicts.

    Args:
        directories: directories of sweeps or of runs; runs that differ only in their seeds are one variant
        html: file to write a page with plots to; the page needs no network
        json: print all numbers as JSON
        expect: 'b < a by 0.01', 'b < a' or 'b = a within 0.02'; the exit code is 1 if that is not established
        baseline: the variant or run to compare with, by default the sweep's own settings, else the first
        margin: the largest difference that counts as none, by default the noise floor
        metric: what to compare, by default valid/loss, or valid/bits_per_byte where tokenizers differ
        rate: the setting that is the learning rate; each variant is compared at its best value
        trust: execute the runs' own code, where a model is defined in an experiment, to count its FLOPs
    """
    result = study.read(directories, study.Options(baseline, margin, metric, rate, trust))
    outcomes = expectations.check(expect, result)
    if html:
        write(html, page.render(result))
    print(as_json(result, outcomes) if json else as_text(result, outcomes))
    return 0 if all(outcome.established for outcome in outcomes) else 1
