"""`lm report`: which differences between runs are real."""
from lm.pages.document import write
from lm.report import expectations, page, study
from lm.report.show import as_json, as_text

JAX = False  # starts no device


def main(*directories: str, html: str = '', json: bool = False, expect: tuple = (), baseline: str = '',
         margin: float | None = None, metric: str = '', rate: str = 'optimizer.peak'):
    """Says which differences between runs are real: paired by seed, with intervals, corrected, with verdicts.

    Args:
        directories: directories of sweeps or of runs; what remains of a run's settings without its seeds is a variant
        html: file to write the page to, which needs no network
        json: print everything as JSON
        expect: 'b < a by 0.01', 'b < a' or 'b = a within 0.02'; exits with 1 where that is not established
        baseline: the variant or run that others are compared with, by default the sweep's own settings, else the first
        margin: what counts as no difference, by default the noise floor
        metric: what to compare, by default valid/loss, or valid/bits_per_byte where tokenizers differ
        rate: the setting at whose best value each variant is compared
    """
    found = study.read(directories, study.Options(baseline, margin, metric, rate))
    outcomes = expectations.check(expect, found)
    if html:
        write(html, page.written(found, directories))
    print(as_json(found, outcomes) if json else as_text(found, outcomes))
    return 0 if all(outcome.established for outcome in outcomes) else 1
