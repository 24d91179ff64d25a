"""Tensors that repeat others, several files of one model, and what is pooled beside it."""
import json
from dataclasses import replace

import architectures
import checkpoints_made as made
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lm import cli, config, convert, data
from lm.convert import checkpoints, exports, sentences
from lm.models import FirstToken, Mean, NoHead, vectors

MODEL = architectures.DECODERS['llama']


def test_an_output_layer_beside_a_tied_embedding_must_be_equal_to_it(tmp_path):
    made.directory(tmp_path / 'model', MODEL)
    file, about = tmp_path / 'model' / 'model.safetensors', tmp_path / 'model' / 'config.json'
    about.write_text(json.dumps({**json.loads(about.read_text()), 'tie_word_embeddings': True}))
    tensors, model = load_file(file), convert.model(tmp_path / 'model')
    with pytest.raises(config.Error, match=r'lm_head\.weight .* differs from model\.embed_tokens\.weight, .*=false'):
        convert.HuggingFace(str(tmp_path / 'model')).params(model, None)
    save_file({**tensors, 'lm_head.weight': tensors['model.embed_tokens.weight']}, file)
    assert 'output' not in convert.HuggingFace(str(tmp_path / 'model')).params(model, None)


def test_files_without_an_index_share_no_name_and_the_plain_one_is_alone(tmp_path):
    for name, value in (('model', 1.0), ('other', 2.0)):
        save_file({'a': np.full(3, value, np.float32)}, tmp_path / f'{name}.safetensors')
    (tmp_path / 'config.json').write_text('{}')
    np.testing.assert_array_equal(checkpoints.Directory(tmp_path).tensor('a'), [1, 1, 1])
    (tmp_path / 'model.safetensors').rename(tmp_path / 'third.safetensors')
    with pytest.raises(config.Error, match=r'a is in third\.safetensors and in other\.safetensors'):
        checkpoints.Directory(tmp_path)
    index = tmp_path / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': {'a': 'other.safetensors'}}))
    np.testing.assert_array_equal(checkpoints.Directory(tmp_path).tensor('a'), [2, 2, 2])
    index.write_text(json.dumps({'weight_map': {'a': 'other.safetensors', 'b': 'third.safetensors'}}))
    with pytest.raises(config.Error, match=r'third\.safetensors has no b'):
        checkpoints.Directory(tmp_path)


@pytest.mark.parametrize(('spans', 'match'), [(((0, 4), (0, 4)), 'begins at byte'), (((0, 4), (8, 12)), 'begins at')])
def test_spans_that_overlap_or_leave_a_hole_are_refused(tmp_path, spans, match):
    text = json.dumps({name: {'dtype': 'F32', 'shape': [1], 'data_offsets': span}
                       for name, span in zip('ab', spans, strict=True)}).encode()
    (tmp_path / 'a').write_bytes(len(text).to_bytes(8, 'little') + text + bytes(spans[-1][1]))
    with pytest.raises(config.Error, match=match):
        checkpoints.header(tmp_path / 'a')


@pytest.mark.parametrize(('flags', 'kind'), [({'pooling_mode_cls_token': True, 'pooling_mode_mean_tokens': False},
                                              FirstToken()), ({}, Mean()), ({'pooling_mode': 'cls'}, FirstToken())])
def test_pooling_is_that_of_sentence_transformers(tmp_path, flags, kind):
    (tmp_path / '1_Pooling').mkdir()
    (tmp_path / '1_Pooling' / 'config.json').write_text(json.dumps(flags))
    assert sentences.pooling({sentences.KEY: sentences.modes(tmp_path)}) == kind
    with pytest.raises(config.Error, match='by max, which lm lacks'):
        sentences.pooling({sentences.KEY: ['max']})


def test_there_and_back_a_model_takes_as_long_a_text(tmp_path):
    made.directory(tmp_path / 'model', MODEL)
    about = tmp_path / 'model' / 'config.json'
    about.write_text(json.dumps({**json.loads(about.read_text()), 'max_position_embeddings': 131072}))
    assert cli.main(['convert', f'{tmp_path}/model', f'{tmp_path}/run']) == 0
    assert cli.main(['convert', f'{tmp_path}/run', f'{tmp_path}/back']) == 0
    assert json.loads((tmp_path / 'back' / 'config.json').read_text())['max_position_embeddings'] == 131072


def test_a_conversion_that_fails_leaves_nothing_and_can_be_repeated(tmp_path, monkeypatch, capfd):
    made.directory(tmp_path / 'model', MODEL)
    (tmp_path / 'file').write_text('mine')
    assert cli.main(['convert', f'{tmp_path}/model', f'{tmp_path}/file']) == 2
    assert 'is a file; name a new directory' in capfd.readouterr().err and (tmp_path / 'file').read_text() == 'mine'
    assert cli.main(['convert', f'{tmp_path}/model', f'{tmp_path}/run']) == 0

    def full(*_, **__):
        (tmp_path / 'back' / 'model.safetensors').write_bytes(b'half')
        raise OSError(28, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(exports, 'write', full)
        assert cli.main(['convert', f'{tmp_path}/run', f'{tmp_path}/back']) == 2
    assert 'back: No space left on device; make room' in capfd.readouterr().err and not (tmp_path / 'back').exists()
    assert cli.main(['convert', f'{tmp_path}/run', f'{tmp_path}/back']) == 0


def test_text_that_is_no_unicode_and_text_without_tokens_are_refused(tmp_path, capfd):
    made.directory(tmp_path / 'model', MODEL)
    assert cli.main(['convert', f'{tmp_path}/model', f'{tmp_path}/run']) == 0
    capfd.readouterr()
    assert cli.main(['generate', f'{tmp_path}/run', 'caf\udce9', '--length=2']) == 2
    assert len(capfd.readouterr().err.strip().splitlines()) == 1
    encoder = data.Bytes().fit((), tmp_path)
    bert = architectures.BIDIRECTIONAL['bert']
    with pytest.raises(config.Error, match='has no vector'):
        vectors.vectors(bert, None, encoder, [''])


def test_an_encoder_without_a_head_is_not_scored():
    model = replace(architectures.BIDIRECTIONAL['bert'], head=NoHead())
    tokens = np.ones((1, 4), np.int32)
    with pytest.raises(config.Error, match='lm embed'):
        model.token_losses(architectures.parameters(model), {'inputs': tokens, 'targets': tokens})
