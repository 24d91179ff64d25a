"""Encoder-decoders against transformers: T5 1.0 and 1.1 and BART of random weights, both ways, and greedy decoding."""
import json
import subprocess
from functools import partial

import checkpoints_made
import jax
import numpy as np
import peers
import pytest

from lm import convert
from lm.convert import checkpoints, exports, families, tables

NAMES = ('t5', 't5_gated', 'bart')
SCRIPT = peers.MODELS.with_name('peers_pairs.py')


def call(*arguments):
    if not peers.PYTHON.exists():
        pytest.skip(f'{peers.PYTHON} is absent; .ci/run makes it, or LM_PEERS names another')
    ended = subprocess.run([peers.PYTHON, SCRIPT, *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    with peers.shared(tmp_path_factory, 'pairs') as (folder, new):
        if new:
            call('make', folder)
        return folder


def batch_of(arrays):
    ones = np.ones_like(arrays['decoder_input_ids'])
    batch = {'encoder_inputs': arrays['input_ids'], 'encoder_segments': arrays['attention_mask'],
             'inputs': arrays['decoder_input_ids'], 'segments': ones}
    return {name: np.asarray(rows, np.int32) for name, rows in batch.items()}


def compare(values, expected):
    error = np.abs(np.asarray(values, np.float64) - expected).max() / max(1, np.abs(expected).max())
    assert error < 1e-4, error


@pytest.mark.parametrize('name', NAMES)
def test_memory_logits_and_greedy_texts_are_those_of_transformers(made, name):
    expected, model = np.load(made / f'{name}.npz'), convert.model(made / name)
    params, batch = convert.HuggingFace(str(made / name)).params(model, None), batch_of(expected)
    with jax.default_matmul_precision('highest'):
        memory = jax.jit(model.encode)(params, batch['encoder_inputs'], batch['encoder_segments'])
        compare(memory[1:], expected['memory'][1:])
        compare(memory[0, :17], expected['memory'][0, :17])
        compare(jax.jit(model.logits)(params, batch), expected['logits'])
        lengths = batch['encoder_segments'].sum(1)
        logits, cache = jax.jit(partial(model.prefill, slots=16))(params, batch['encoder_inputs'], lengths)
        step, written = jax.jit(model.decode), []
        for _ in range(expected['greedy'].shape[1]):
            written.append(np.asarray(logits.argmax(-1), np.int32))
            logits, cache = step(params, written[-1], cache)
    np.testing.assert_array_equal(np.stack(written, 1), expected['greedy'])


def test_exported_directories_load_in_transformers_and_give_its_logits(made, tmp_path):
    directories = []
    for name in NAMES:
        model = convert.model(made / name)
        leaf = checkpoints_made.leaves(convert.HuggingFace(str(made / name)).params(model, None))
        family, hf = families.fitting(model)
        assert families.of(checkpoints.Directory(made / name).config, name) is family, name
        directory = tmp_path / name
        directory.mkdir()
        exports.write(directory, tables.Binding(model, family.TABLE), leaf)
        exports.write_config(directory, family, hf, context=40)
        directories.append(directory)
    assert json.loads(call('run', *directories)) == {str(directory): {} for directory in directories}
    for directory in directories:
        ours, theirs = np.load(directory / 'ran.npz'), np.load(made / f'{directory.name}.npz')
        compare(ours['logits'], theirs['logits'])
        np.testing.assert_array_equal(ours['greedy'], theirs['greedy'])
