"""A real model, SmolLM2-135M-Instruct in Q4_1: read from GGUF, run, exported and loaded in transformers, trained on.

Its perplexity on the first 8 windows of 512 predictions of the raw test text of WikiText-2, without a token before
them, is 30.31; another program in numpy had 30.3.
"""
import gzip
import json
import math
import os
import subprocess
import sys
from functools import partial

import gguf as peer
import jax
import numpy as np
import peers
import pytest

from lm import convert, generate, trees
from lm.convert import dialects, exports, imports, start
from lm.train import runs

TOLERANCE = 1e-4


@pytest.fixture(scope='module')
def file():
    return peers.file(*peers.SMOLLM2)


@pytest.fixture(scope='module')
def run(tmp_path_factory, file):
    """Returns the directory of the converted run, of all workers."""
    with peers.shared(tmp_path_factory, 'smollm2') as (folder, new):
        if new:
            imports.run_of(file, folder / 'run')
    return folder / 'run'


@pytest.fixture(scope='module')
def trained(run):
    return runs.load(run, devices=jax.devices()[:1])


def test_tensors_are_those_of_the_gguf_package_bit_for_bit(file):
    checkpoint = dialects.File(file)
    _, tensor = start.bound(checkpoint, start.model_of(checkpoint))
    heads = {'attn_q': 9, 'attn_k': 3}
    stored = peer.GGUFReader(file).tensors
    assert len(stored) == len(checkpoint.shapes) == 272
    for item in stored:
        stem = item.name.split('.')[-2]
        expected = peer.quants.dequantize(item.data, item.tensor_type)
        if stem in heads:  # llama.cpp lays the two halves of a head side by side: row 2i is i, row 2i + 1 is i + H/2
            order = np.concatenate([head * 64 + np.r_[0:64:2, 1:64:2] for head in range(heads[stem])])
            expected = expected[order]
        np.testing.assert_array_equal(tensor(checkpoint.name(item.name)).view(np.uint32), expected.view(np.uint32))


@partial(jax.jit, static_argnums=0)
def losses(model, params, rows):
    return model.token_losses(params, {'inputs': rows[:, :-1], 'targets': rows[:, 1:]})[0]


def test_perplexity_is_that_of_an_independent_program(trained, shared):
    text = gzip.open(shared / 'wikitext2' / 'wiki.test.raw.gz', 'rt', encoding='utf-8').read(20000)
    tokens = trained.encoder.encode(text)[:8 * 512 + 1].astype(np.int32)
    rows = np.stack([tokens[start:start + 513] for start in range(0, 8 * 512, 512)])
    nll = np.concatenate([losses(trained.settings.model, trained.params, rows[i:i + 2]) for i in range(0, 8, 2)])
    perplexity, size = math.exp(nll.mean(dtype=np.float64)), len(trained.encoder.decode(tokens[1:]).encode())
    assert perplexity == pytest.approx(30.3, abs=0.05)
    assert nll.sum(dtype=np.float64) / math.log(2) / size == pytest.approx(1.169, abs=0.001)


def test_exported_it_is_the_same_model_in_transformers(run, trained, tmp_path):
    directory = tmp_path / 'exported'
    exports.directory_of(run, directory)
    model, params = trained.settings.model, trained.params
    prompt = trained.encoder.encode('The capital of France is')[None].astype(np.int32)
    tokens = np.random.default_rng(0).integers(0, model.vocab, (1, 64)).astype(np.int32)
    np.save(directory / 'tokens.npy', tokens)
    np.save(directory / 'prompt.npy', prompt)
    assert json.loads(peers.call('run', directory)) == {str(directory): {}}
    expected = np.load(directory / 'ran.npz')
    with jax.default_matmul_precision('highest'):
        result = jax.jit(model.activations)(params, tokens)
        lengths = (prompt, np.array([prompt.shape[1]], np.int32), np.int32(0))
        begun = generate.begin(model, 128, params, lengths, jax.random.key(0))
        _, greedy, _ = generate.extend(model, generate.Sampler(0.0), 64, params, begun)
    for name, ours, theirs in (('logits', result['logits'], expected['logits']),
                               ('states', result['residual'][:-1], expected['states'])):
        error = np.abs(np.asarray(ours) - theirs).max() / max(1, np.abs(theirs).max())
        assert error < TOLERANCE, f'{name}: {error}'
    np.testing.assert_array_equal(greedy, np.load(directory / 'greedy.npy'))
    assert (directory / 'chat_template.jinja').read_text().startswith('{% for message in messages %}')
    assert json.loads((directory / 'tokenizer_config.json').read_text())['eos_token'] == '<|im_end|>'


def lm(*words):
    environment = {**os.environ, 'XLA_FLAGS': ''}  # of one device, optimised
    ended = subprocess.run([sys.executable, '-m', 'lm', *map(str, words)], capture_output=True, text=True,
                           env=environment)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout


def test_it_continues_a_prompt(run):
    assert 'Paris' in lm('generate', run, 'The capital of France is', '--temperature=0', '--length=8')


@pytest.mark.long
def test_it_is_scored_on_other_text(run, tmp_path, shared):
    text = gzip.open(shared / 'wikitext2' / 'wiki.test.raw.gz', 'rt', encoding='utf-8').read(9500)
    (tmp_path / 'text.txt').write_text(text)
    scores = json.loads(lm('eval', run, f'--text={tmp_path}/text.txt', f'--cache={tmp_path}/cache'))
    assert scores['tokens'] > 2048 and scores['bits_per_byte'] == pytest.approx(0.985, abs=0.01)


@pytest.mark.long
def test_trained_on_shakespeare_its_loss_falls_and_it_is_exported(file, run, tmp_path, shared):
    shakespeare = next((shared / 'tinyshakespeare').glob('*'))
    experiment = tmp_path / 'shakespeare.py'
    experiment.write_text(f"""'''SmolLM2 trained on for 20 steps.'''
from lm import convert, data, optim, train


def config():
    text = data.Files({str(shakespeare)!r})
    return train.Config(
        model=convert.model({str(file)!r}),
        data=data.Corpus(data.Cut(text, 0.0, 0.9), data.Cut(text, 0.995, 1.0),
                         data.HuggingFace({str(run / 'tokenizer/tokenizer.json')!r}), 128, 2),
        optimizer=optim.AdamW(peak=1e-4, schedule=optim.Constant()), steps=20, mesh={{'data': 1}},
        start=convert.Gguf({str(file)!r}), cadence=train.Cadence(log=1, eval=19, eval_batches=4))
""")
    lm('train', experiment, f'--workdir={tmp_path}/trained', f'--cache={tmp_path}/cache')
    records = [json.loads(line) for line in (tmp_path / 'trained/metrics.jsonl').read_text().splitlines()]
    losses = [record['loss'] for record in records if 'loss' in record]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    lm('convert', tmp_path / 'trained', tmp_path / 'exported')
    directory = tmp_path / 'exported'
    np.save(directory / 'tokens.npy', np.arange(8)[None])
    assert json.loads(peers.call('run', directory)) == {str(directory): {}}
    model = convert.model(directory)
    read = trees.flatten(convert.HuggingFace(str(directory)).params(model, None))
    params = trees.flatten(runs.load(tmp_path / 'trained', devices=jax.devices()[:1]).params)
    for path, array in params.items():
        np.testing.assert_array_equal(read[path], array, err_msg=path)
