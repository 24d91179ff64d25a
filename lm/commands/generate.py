"""`lm generate`: text from a trained run."""
import sys

import jax

from lm import generate
from lm.train import runs

PROCESSES = True  # several processes may run it as one


def main(run: str, *prompts: str, length: int | None = None, temperature: float = 0.8, top_k: int = 0,
         top_p: float = 1.0, min_p: float = 0.0, repetition: float = 1.0, stop: str = '', seed: int = 0, step: int = 0,
         logprobs: bool = False, trust: bool = False):
    """Continues prompts with a trained model, streamed as it is drawn.

    Args:
        run: the --workdir of an `lm train`
        prompts: the texts to continue; without one, the beginning of a document, or of a line where none is marked
        length: how many tokens to draw at most, by default 200, or as many as fit the model's positions
        temperature: 0 takes the likeliest token
        top_k: draw from this many likeliest tokens, 0 for all
        top_p: draw from the smallest set of tokens with this probability
        min_p: drop tokens less than this fraction as likely as the likeliest
        repetition: penalty on tokens that the text has already, 1 for none
        stop: end before this text
        seed: the same seed draws the same text
        step: the checkpoint to use, 0 for the newest
        logprobs: print each token with its log-probability
        trust: execute the run's own code, where its model or another part is defined in its experiment
    """
    sampler = generate.Sampler(temperature, top_k, top_p, min_p, repetition)
    trained = runs.load(run, step, jax.local_devices()[:1], trust=trust)
    prefix = trained.settings.data.prefix(trained.encoder)
    prompts = prompts or (generate.opening(prefix),)
    drawn = generate.generate(trained.settings.model, trained.params, trained.encoder, prompts, prefix=prefix,
                              length=length, sampler=sampler, seed=seed, stop=(stop,) if stop else ())
    shown = prompts if trained.settings.model.continues else ('',) * len(prompts)  # others answer
    if len(prompts) == 1 and not logprobs:
        _tell([generate.stream(shown[0], drawn)])
        return
    samples = list(drawn)[-1]
    for prompt, before, sample in zip(prompts, shown, samples, strict=True):
        print(prompt if logprobs else before + sample.text)
        if logprobs:
            read = trained.encoder.encode(before).tolist()
            for at, (token, logprob) in enumerate(zip(sample.tokens, sample.logprobs, strict=True)):
                print(f'{logprob:9.4f}  {trained.encoder.decode_after([*read, *sample.tokens[:at]], [token])!r}')
    _tell(samples)


def _tell(samples):
    """Prints how many tokens a model that drafts gave in a pass."""
    if any(sample.drafted for sample in samples):
        print(f'{generate.tokens_a_pass(samples):.2f} tokens a pass of the trunk', file=sys.stderr)
