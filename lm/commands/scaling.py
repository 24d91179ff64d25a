"""`lm scaling`: the law of a sweep of sizes."""
from lm.pages.document import write
from lm.scaling import laws, points
from lm.scaling.page import written
from lm.scaling.show import Findings, Guess, advise, as_json, as_text, asked_for, described, hold_out

JAX = False  # starts no device


def main(*directories: str, at: tuple = (), predict: tuple = (), budget: tuple[float, ...] = (),
         metric: str = 'valid/loss', non_embedding: bool = False, json: bool = False, html: str = ''):
    """Fits L(N, D) = E + A/N^alpha + B/D^beta to the finished runs of a sweep of sizes, and predicts larger ones.

    Args:
        directories: directories of sweeps or of runs; of each size and length the settings that did best are taken
        at: predict a run of so many parameters and tokens, e.g. N=1e9,D=2e10
        predict: predict the largest run with other settings, e.g. 'model.width=512 steps=20000'
        budget: recommend N and D for so many FLOPs of training, e.g. 1e21
        metric: what was recorded at the end of a run, in nats a token or bits a byte
        non_embedding: count only parameters between embedding and output, as Kaplan et al. did
        json: print everything as JSON
        html: file to write a page with plots to, which needs no network
    """
    asked = [asked_for(text) for text in at]
    found = points.read(directories, metric, non_embedding)
    asked += [described(text, found) for text in predict]
    fit = laws.fit(found.n, found.d, found.loss)
    guesses = [Guess(run, n, d, *fit.predict(n, d)) for run, n, d in asked]
    findings = Findings(found, fit, guesses, [advise(found, fit, flops) for flops in budget], hold_out(found))
    if html:
        write(html, written(findings))
    print(as_json(findings) if json else as_text(findings))
