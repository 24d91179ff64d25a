"""Run directories as `lm train` writes them, with losses drawn instead of trained."""
import copy
import json

import numpy as np

from lm import cli

BETTER = {'model.layer.attention.position': {'type': 'lm.nn:Alibi'}}
SAME = {'optimizer.weight_decay': 0.2}

CONFIG = {
    'type': 'lm.train:Config',
    'model': {'type': 'lm.models:Decoder', 'vocab': 258, 'depth': 2, 'width': 64, 'layer': {
        'type': 'lm.models:Layer', 'attention': {
            'type': 'lm.nn:Attention', 'heads': 2, 'position': {'type': 'lm.nn:Rope', 'base': 10000.0}}}},
    'data': {'type': 'lm.data:Corpus', 'train': {'type': 'lm.data:Synthetic', 'count': 300},
             'tokenizer': {'type': 'lm.tokenizers:Bytes'}, 'context': 64, 'batch': 16, 'seed': 0},
    'optimizer': {'type': 'lm.optim:AdamW', 'peak': 0.003, 'weight_decay': 0.1},
    'steps': 1000, 'seed': 0, 'mesh': {'data': -1}, 'cadence': {'type': 'lm.train:Cadence', 'log': 50}}


def changed(changes):
    """Returns the record of a configuration with {dotted key: value} set."""
    config = copy.deepcopy(CONFIG)
    for key, value in changes.items():
        *path, last = key.split('.')
        inside = config
        for name in path:
            inside = inside[name]
        inside[last] = value
    return config


def write(directory, changes, loss, seed=0, **how):
    """Writes the run of changed settings that ends at `loss`. how: speed, sources {name: loss}, until (step), bad."""
    config = changed({**changes, 'seed': seed, 'data.seed': seed})
    directory.mkdir(parents=True)
    (directory / 'config.json').write_text(json.dumps({
        'config': config, 'file': 'experiments/x.py', 'commit': '0123456789abcdef',
        'command': ['lm', 'train', 'experiments/x.py', *(f'{k}={v}' for k, v in changes.items())],
        'versions': {'jax': '0.10.2'}}))
    (directory / 'experiment.py').write_text('"""Does it help?\n\nMore.\n"""\n')
    rows = list(_records(config, loss, np.random.default_rng(seed), how))
    (directory / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return directory


def _records(config, loss, generator, how):
    steps, until = config['steps'], how.get('until', config['steps'])
    curve = lambda step: loss + 3 * (1 / step ** 0.5 - 1 / steps ** 0.5)
    speed = how.get('speed', 10000.0)
    every = config['cadence']['log']
    for step in range(every, until + 1, every):
        training = {'loss': curve(step) + 0.02 * generator.normal(), 'rate': 0.001}
        if how.get('bad') and step == until:
            yield {'step': step, **training, 'loss': None}
            return
        yield {'step': step, **training, **({'tokens_per_second': speed} if step > every else {})}
        if step % 100 == 0:
            sources = {f'valid/loss/{name}': value for name, value in how.get('sources', {}).items()}
            yield {'step': step, 'valid/loss': curve(step), 'valid/bits_per_byte': curve(step) / np.log(2), **sources}


def sweep(directory, variants, seeds=5, spread=0.01, generator=None):
    """Writes {name: (changes, loss)} with `seeds` runs each, whose losses share half of their variance by seed."""
    generator = np.random.default_rng(0) if generator is None else generator
    shared = generator.normal(size=seeds)
    for name, (changes, loss) in variants.items():
        for seed in range(seeds):
            drawn = loss + spread * (shared[seed] + generator.normal()) / 2 ** 0.5
            write(directory / f'{name}-{seed}', changes, drawn, seed)
    return directory


def report(*argv):
    """Returns the exit code of `lm report`."""
    return cli.main(['report', *map(str, argv)])
