"""`lm translate`: texts written by a sequence-to-sequence model, and their BLEU."""
import sys

import jax

from lm import config, generate
from lm.config.files import require
from lm.data import Lines, Reject
from lm.train import runs

ROWS = 64  # texts that are searched at once


def main(run: str, file: str, *, references: str = '', beams: int = 5, alpha: float = 1.0,
         length: int | None = None, step: int = 0, trust: bool = False):
    """Writes the likeliest answer to each line of a file, one a line, by beam search; nothing to an empty line.

    Args:
        run: the --workdir of an `lm train` of an EncoderDecoder
        file: a text file of sources, a line each; relative paths are under $LM_DATA, but for ./file
        references: a file with the right answers: BLEU (sacrebleu, 13a, cased) and that of lower-cased words are shown
        beams: how many texts are kept at every token; 1 takes the likeliest token
        alpha: length penalty, ((5 + length) / 6)^alpha
        length: how many tokens to write at most, by default some 50 more than the longest of 64 sources
        step: the checkpoint to use, 0 for the newest
        trust: execute the run's own code, where its model or another part is defined in its experiment
    """
    how = generate.Beams(beams, alpha)
    sources, answers = (_lines(path) if path else None for path in (file, references))
    if answers and len(answers) != len(sources):
        raise config.Error(f'{references} has {len(answers)} lines and {file} has {len(sources)}; give one for one.')
    trained = runs.load(run, step, jax.local_devices()[:1], trust=trust)
    if trained.settings.model.continues:
        raise config.Error(f'the model of {run} goes on with a text and answers none; try lm generate.')
    written = []
    for start in range(0, len(sources), ROWS):
        rows = sources[start:start + ROWS]
        asked = [text for text in rows if text]
        texts = iter(generate.beam_search(trained.settings.model, trained.params, trained.encoder, asked, how,
                                          length=length) if asked else ())
        written += [next(texts) if text else '' for text in rows]
        print('\n'.join(' '.join(text.split()) for text in written[start:]), flush=True)
    if answers:
        bleu = require('sacrebleu', 'BLEU', "'lm[bleu]'")
        cased = bleu.corpus_bleu(written, [answers])
        words = bleu.corpus_bleu([text.lower() for text in written], [[text.lower() for text in answers]])
        print(f'BLEU {cased.score:.2f} (sacrebleu, 13a, cased), {words.score:.2f} lower-cased', file=sys.stderr)


def _lines(path):
    """Returns the lines of a file; raises config.Error where one of them is no text."""
    records = list(Lines(path).records())
    for number, record in enumerate(records, 1):
        if isinstance(record, Reject) and record.reason != 'empty document':
            raise config.Error(f'line {number} of {path} is no text ({record.reason}); mend it.')
    return ['' if isinstance(record, Reject) else record.text for record in records]
