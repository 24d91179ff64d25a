"""`lm convert`: weights of others in, a run out."""
import os

import jax

from lm import trees
from lm.convert import exports, imports


def main(source: str, target: str, *, step: int = 0, trust: bool = False):
    """Converts a Hugging Face directory or a GGUF file to a run, or a run to a Hugging Face directory.

    Args:
        source: a directory with config.json and safetensors, a .gguf file, or the --workdir of an `lm train`
        target: the directory to write, a new or an empty one
        step: the checkpoint of a run to convert, 0 for the newest
        trust: execute the run's own code, where its model or another part is defined in its experiment
    """
    if os.path.isdir(os.path.join(source, 'checkpoints')):
        architecture, reached = exports.directory_of(source, target, step, trust)
        print(f'{target}: {architecture} of step {reached}')
        return
    model = imports.run_of(source, target).model
    count = trees.count(jax.eval_shape(model.init, jax.random.key(0)))
    print(f'{target}: a run of {type(model).__name__}, {count:,} parameters, {model.vocab:,} tokens')
