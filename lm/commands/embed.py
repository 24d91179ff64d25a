"""`lm embed`: vectors of texts."""
import json

import jax

from lm.models import vectors
from lm.train import runs


def main(run: str, *texts: str, step: int = 0, trust: bool = False):
    """Prints the vector of each text, of length 1, as a line of JSON: {"text": ..., "vector": [...]}.

    Args:
        run: the --workdir of an `lm train` of an Encoder, or of an `lm convert`
        texts: what to read
        step: the checkpoint to use, 0 for the newest
        trust: execute the run's own code, where its model or another part is defined in its experiment
    """
    trained = runs.load(run, step, jax.local_devices()[:1], trust=trust)
    rows = vectors.vectors(trained.settings.model, trained.params, trained.encoder, texts)
    for text, row in zip(texts, rows, strict=True):
        print(json.dumps({'text': text, 'vector': [round(float(number), 7) for number in row]}, ensure_ascii=False))
