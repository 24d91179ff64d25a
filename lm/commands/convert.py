"""`lm convert`: weights of others in, a run out."""
from pathlib import Path

from lm.convert import exports, imports


def main(source: str, target: str, *, step: int = 0, trust: bool = False):
    """Converts a Hugging Face directory or a GGUF file to a run, or a run to a Hugging Face directory.

    Args:
        source: a directory with config.json and safetensors, a .gguf file, or the --workdir of an `lm train`
        target: the directory to write, a new or an empty one
        step: the checkpoint of a run to convert, 0 for the newest
        trust: execute the run's own code, where its model or another part is defined in its experiment
    """
    if (Path(source) / 'checkpoints').is_dir():
        family, reached = exports.directory_of(source, target, step, trust)
        print(f'{target}: {family.ARCHITECTURE} of step {reached}')
        return
    settings = imports.run_of(source, target)
    print(f'{target}: a run of {type(settings.model).__name__}, {settings.model.depth} layers of width '
          f'{settings.model.width}, {settings.model.vocab:,} tokens')
