"""The core of conversion: layouts, tables, streamed checkpoints, starts on a mesh, what a text begins with."""
import json

import architectures
import checkpoints_made as made
import jax
import numpy as np
import pytest

from lm import convert, train, trees
from lm.convert import checkpoints, exports, families, imports, layouts, start, tables
from lm.data import Bytes
from lm.models import Decoder, Head, Layer
from lm.nn import Attention, Experts
from lm.parallel import sharding
from lm.train import checkpoint, checkpoint_stream, runs

SIZES = {'D': 3, 'N': 4, 'K': 2, 'H': 5, 'F': 6}


def numbered(*shape):
    return np.arange(np.prod(shape)).reshape(shape)


def test_layouts_are_what_their_words_say():
    plain = numbered(20, 3)
    np.testing.assert_array_equal(layouts.view(plain, 'NH D', 'DNH', SIZES), plain.reshape(4, 5, 3).transpose(2, 0, 1))
    fused = numbered(40, 3)
    for number, (layout, letter, rows) in enumerate((('(NH)+KH+KH D', 'N', slice(0, 20)),
                                                     ('NH+(KH)+KH D', 'K', slice(20, 30)),
                                                     ('NH+KH+(KH) D', 'K', slice(30, 40)))):
        assert layouts.shape(layout, SIZES) == (40, 3), number
        np.testing.assert_array_equal(layouts.view(fused, layout, f'{letter}HD', SIZES),
                                      fused[rows].reshape(-1, 5, 3))
    between = numbered(60, 3)
    np.testing.assert_array_equal(layouts.view(between, 'N1/3H D', 'NHD', SIZES), between.reshape(4, 3, 5, 3)[:, 1])
    np.testing.assert_array_equal(layouts.view(numbered(3, 12), 'D F0/2', 'DF', SIZES), numbered(3, 12)[:, ::2])


@pytest.mark.parametrize(('layout', 'letters'), [
    ('NH D', 'DNH'), ('D NH', 'NHD'), ('(NH)+KH+KH D', 'NHD'), ('D NH+KH+(KH)', 'DKH'), ('K2/3H D', 'DKH'),
    ('F1/2 D', 'DF')])
def test_a_layout_written_through_is_read_back(layout, letters):
    array = np.zeros(layouts.shape(layout, SIZES))
    place = layouts.view(array, layout, letters, SIZES)
    values = np.random.default_rng(0).standard_normal(place.shape)
    place[...] = values
    np.testing.assert_array_equal(layouts.view(array, layout, letters, SIZES), values)
    assert np.count_nonzero(array) == values.size


def test_names_that_differ_in_a_number_are_joined():
    names = ['a', *(f'x.{i}.w' for i in (0, 1, 2, 5)), 'x.3.b', 'lm_head.weight']
    assert tables.collapsed(names) == ['a', 'x.{0-2,5}.w', 'x.3.b', 'lm_head.weight']


EXPERTS = Decoder(50, 2, 16, Layer(Attention(4, 2), Experts(4, 2, 24)), head=Head(tied=False))
WRITTEN = {'llama': architectures.DECODERS['llama'], 'gpt2': architectures.DECODERS['gpt2'], 'experts': EXPERTS}


@pytest.fixture(params=WRITTEN)
def written(tmp_path, request):
    """Returns (model, params, directory of its checkpoint)."""
    model = WRITTEN[request.param]
    return model, made.directory(tmp_path / 'model', model), tmp_path / 'model'


def test_a_part_of_a_parameter_is_that_part_of_the_whole(written):
    model, _, directory = written
    binding, tensor = start.bound(checkpoints.Directory(directory), model)
    rng = np.random.default_rng(0)
    for path, parameter in binding.parameters.items():
        whole = parameter.read(tensor)
        for _ in range(4):
            cuts = [sorted(rng.integers(0, size + 1, 2)) for size in parameter.shape]
            index = tuple(slice(int(first), int(last)) for first, last in cuts)
            np.testing.assert_array_equal(parameter.read(tensor, index), whole[index], err_msg=path)


def test_a_start_reads_onto_a_mesh_what_it_reads_onto_one_device(written):
    model, params, directory = written
    mesh = sharding.make_mesh({'fsdp': 2, 'tensor': 2}, jax.devices()[:4])
    begun = convert.HuggingFace(str(directory)).params(model, None, mesh)
    places = sharding.mirror(params, model.axes(), mesh)
    for path, array in trees.flatten(begun).items():
        expected = trees.flatten(params)[path].copy()
        if path == 'tokens':
            expected[model.vocab:] = 0
        if path == 'output':
            expected[:, model.vocab:] = 0
        np.testing.assert_array_equal(array, expected, err_msg=path)
        assert array.sharding == trees.flatten(places)[path]


def test_a_streamed_checkpoint_is_what_its_arrays_are_with_their_checksums(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_stream, 'NUMBERS', 14)
    stacked, plain = (np.random.default_rng(0).standard_normal(shape, np.float32) for shape in ((3, 5, 7), (40,)))
    blocks = []

    def read(index):
        blocks.append(stacked[index].size)
        return stacked[index]
    params = {'a': {'stacked': checkpoint_stream.Streamed(stacked.shape, read, 1)},
              'plain': checkpoint_stream.Streamed(plain.shape, lambda index: plain[index])}
    checkpoint_stream.save(tmp_path, 3, params, {'offset': 0, 'data': {}})
    assert sum(blocks) == stacked.size and max(blocks) == 14
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {'params': {'a': {'stacked': jax.ShapeDtypeStruct(stacked.shape, np.float32, sharding=place)},
                           'plain': jax.ShapeDtypeStruct(plain.shape, np.float32, sharding=place)}}
    state, meta = checkpoint.restore(tmp_path, abstract)
    np.testing.assert_array_equal(state['params']['a']['stacked'], stacked)
    np.testing.assert_array_equal(state['params']['plain'], plain)
    kept = json.loads((tmp_path / '3/meta/metadata').read_text())['checksums']
    assert kept == {f'params/{name}': int(trees.checksums(array)) for name, array in
                    (('a/stacked', stacked), ('plain', plain))}
    assert meta == {'offset': 0, 'data': {}}


def test_a_run_trained_from_a_converted_one_starts_with_its_parameters(written, tmp_path):
    model, _, directory = written
    imports.run_of(directory, tmp_path / 'run')
    loaded = runs.load(tmp_path / 'run', devices=jax.devices()[:1])
    begun = train.From(str(tmp_path / 'run')).params(model, jax.random.key(0))
    for path, array in trees.flatten(loaded.params).items():
        np.testing.assert_array_equal(trees.flatten(begun)[path], array, err_msg=path)


def test_large_exports_are_several_files_with_an_index(written, tmp_path):
    model, params, _ = written
    family, hf = families.fitting(model)
    binding = tables.Binding(model, family.TABLE)
    (tmp_path / 'shards').mkdir()
    exports.write(tmp_path / 'shards', binding, made.leaves(params), shard=2 ** 13)
    exports.write_config(tmp_path / 'shards', family, hf, context=20)
    files = sorted(path.name for path in (tmp_path / 'shards').glob('*.safetensors'))
    assert len(files) > 1 and files[0] == f'model-00001-of-{len(files):05}.safetensors'
    assert checkpoints.Directory(tmp_path / 'shards').shapes == binding.shapes


def test_a_text_begins_as_the_tokenizer_says(tmp_path):
    made.directory(tmp_path / 'model', WRITTEN['llama'])
    about = {'bos_token': 'Ġ', 'eos_token': '<|endoftext|>', 'add_bos_token': True}
    (tmp_path / 'model/tokenizer_config.json').write_text(json.dumps(about))
    data = imports.run_of(tmp_path / 'model', tmp_path / 'run').data
    encoder = data.tokenizer.fit(None, tmp_path / 'run/tokenizer')
    assert data.prefix(encoder) == [made.BYTE_PAIRS.index('Ġ')]
    (tmp_path / 'model/tokenizer_config.json').write_text(json.dumps(about | {'add_bos_token': False}))
    assert imports.run_of(tmp_path / 'model', tmp_path / 'other').data.prefix(encoder) == [0]


def test_a_run_with_a_tokenizer_of_ours_says_that_it_is_not_exported(tmp_path, capsys):
    exports.keep_tokenizer(tmp_path, tmp_path / 'out', Bytes().fit((), tmp_path))
    assert 'ByteEncoder of' in capsys.readouterr().out
