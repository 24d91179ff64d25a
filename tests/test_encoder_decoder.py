"""An EncoderDecoder: what it sees, packed and alone, cached and whole, on a mesh; beam search; pairs of texts."""
import itertools
from dataclasses import replace
from functools import partial

import architectures
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from architectures import parameters

from lm import cli, config, data, generate, records, train
from lm.models import Embedding, EncoderDecoder, Half, Head, Layer, PostNorm, ScaledHead
from lm.nn import MLP, Alibi, Attention, LayerNorm, Learned, NoPE, Relative, Relu, Rope, Sinusoidal
from lm.parallel import sharding


def halves(position, scale=None, **fields):
    """Returns (encoder, decoder) of two layers with a position, the decoder with cross attention."""
    def side(causal):
        place = replace(position, causal=causal) if isinstance(position, Relative) else position
        across = Attention(4, 2, causal=False, position=NoPE(), scale=scale) if causal else None
        return Half(2, Layer(Attention(4, causal=causal, position=place, scale=scale), cross=across,
                             mlp=MLP(24, Relu()), **fields))
    return side(False), side(True)


def small(position, embedding=None, head=None, **fields):
    encoder, decoder = halves(position, **fields)
    return EncoderDecoder(50, 1, 16, encoder, decoder, embedding or Embedding(), head or Head())


MODELS = {
    'vaswani': small(NoPE(), Embedding(Sinusoidal(100.0), scaled=True), norm=LayerNorm(), residual=PostNorm()),
    't5': small(Relative(8, 20), head=ScaledHead(), scale=1.0),
    't5 1.1': small(Relative(8, 20), head=Head(tied=False), scale=1.0),
    'bart': small(NoPE(), Embedding(Learned(24)), norm=LayerNorm(), residual=PostNorm()),
    'rope': small(Rope()),
    'alibi': small(Alibi()),
}
models = pytest.mark.parametrize('name', MODELS)


def pairs(seed=0):
    """Returns a batch of two rows: a pair alone and padding, and two pairs."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 50, (2, 2, 12)).astype(np.int32)
    sides = []
    for first, lengths in zip(tokens, ([(7,), (5, 4)], [(6,), (3, 8)]), strict=True):
        segments = np.array([[*np.repeat(range(1, len(row) + 1), row), *[0] * (12 - sum(row))] for row in lengths])
        positions = np.array([[*itertools.chain(*map(range, row)), *[0] * (12 - sum(row))] for row in lengths])
        sides.append((first * (segments > 0), segments.astype(np.int32), positions.astype(np.int32)))
    (source, of_source, at), (inputs, segments, positions) = sides
    return {'encoder_inputs': source, 'encoder_segments': of_source, 'encoder_positions': at, 'inputs': inputs,
            'segments': segments, 'positions': positions, 'targets': np.roll(inputs, -1, 1),
            'weights': (segments > 0).astype(np.float32)}


@models
def test_packed_pairs_are_alone(name):
    model, batch = MODELS[name], pairs()
    params = parameters(model)
    whole = np.asarray(architectures.jit(model.logits)(params, batch))
    alone = model.logits(params, {'encoder_inputs': batch['encoder_inputs'][1:, 5:9],
                                  'inputs': batch['inputs'][1:, 3:11]})
    np.testing.assert_allclose(whole[1:, 3:11], alone, atol=2e-4)


@models
def test_a_target_sees_its_source_and_no_later_token(name):
    model, batch = MODELS[name], pairs()
    logits = partial(architectures.jit(model.logits), parameters(model))
    plain = np.asarray(logits(batch))

    def moved(side, row, at):
        changed = batch[side].copy()
        changed[row, at] = (changed[row, at] + 1) % 50
        return np.abs(np.asarray(logits({**batch, side: changed})) - plain).max(-1)
    assert (moved('encoder_inputs', 0, 3)[0, :6] > 1e-4).all() and moved('encoder_inputs', 0, 3)[1].max() == 0
    later = moved('inputs', 1, 6)[1]
    assert later[:6].max() == 0 and (later[6:11] > 1e-4).all()
    assert moved('encoder_inputs', 1, 1)[1, 3:11].max() == 0


@models
def test_cached_decoding_is_the_whole_pass(name):
    model, rng = MODELS[name], np.random.default_rng(1)
    params, source = parameters(model), rng.integers(2, 50, (2, 9)).astype(np.int32)
    lengths, target = np.array([9, 5], np.int32), rng.integers(2, 50, (2, 6)).astype(np.int32)
    inputs = np.concatenate([np.full((2, 1), 1, np.int32), target], 1)
    segments = (np.arange(9) < lengths[:, None]).astype(np.int32)
    whole = model.logits(params, {'encoder_inputs': source, 'encoder_segments': segments, 'inputs': inputs,
                                  'segments': np.ones_like(inputs)})
    logits, cache = model.prefill(params, source, lengths, 16)
    step = architectures.jit(model.decode)
    steps = [logits]
    for at in range(6):
        logits, cache = step(params, target[:, at], cache)
        steps.append(logits)
    np.testing.assert_allclose(np.stack(steps, 1), whole, atol=2e-4)


def test_the_original_transformer_is_the_oracles():
    """One layer a side, in float64: sinusoids, attention, what is added and normed after each sublayer."""
    encoder, decoder = halves(NoPE(), norm=LayerNorm(1e-6), residual=PostNorm())
    model = EncoderDecoder(50, 1, 16, replace(encoder, depth=1), replace(decoder, depth=1),
                           Embedding(Sinusoidal(), scaled=True))
    params, batch = parameters(model), {'encoder_inputs': pairs()['encoder_inputs'][:1, :7],
                                        'inputs': pairs()['inputs'][:1, :6]}
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def embed(tokens):
        at = np.arange(tokens.shape[1])[:, None] * np.exp(-np.log(10000.0) * np.arange(8) / 8)
        return wide['tokens'][tokens] * 4 + np.concatenate([np.sin(at), np.cos(at)], -1)

    def attend(own, x, memory, causal):
        query, key, value = (np.tensordot(source, own[name], 1)
                             for name, source in (('query', x), ('key', memory), ('value', memory)))
        key, value = (np.repeat(array, 4 // array.shape[2], 2) for array in (key, value))
        shape = (len(x), x.shape[1], memory.shape[1])
        visible = np.tril(np.ones(shape, bool)) if causal else np.ones(shape, bool)
        return np.tensordot(oracle.attend(query, key, value, visible), own['out'], 2)

    def side(name, x, memory=None):
        blocks = jax.tree.map(lambda a: a[0], wide[name]['blocks'])
        norm = partial(oracle.normalise, LayerNorm(1e-6), blocks)
        x = norm('attention_norm', x + attend(blocks['attention'], x, x, memory is not None))
        if memory is not None:
            x = norm('cross_norm', x + attend(blocks['cross'], x, memory, False))
        return norm('mlp_norm', x + np.maximum(x @ blocks['mlp']['up'], 0) @ blocks['mlp']['down'])
    x = side('decoder', embed(batch['inputs']), side('encoder', embed(batch['encoder_inputs'])))
    np.testing.assert_allclose(model.logits(params, batch), (x @ wide['tokens'].T)[..., :50], atol=2e-4)


def test_it_is_split_over_a_mesh_by_the_names_of_its_axes():
    mesh, model, batch = sharding.make_mesh({'data': 2, 'fsdp': 2, 'tensor': 2}), MODELS['t5 1.1'], pairs()
    batch = jax.tree.map(lambda x: np.concatenate([x, x]), batch)
    params, objective = parameters(model), train.Conditional(smoothing=0.1)
    places = sharding.mirror(jax.eval_shape(model.init, jax.random.key(0)), model.axes(), mesh)

    def slope(params, batch):
        return jax.value_and_grad(lambda p: objective.loss(model, p, batch, jax.random.key(2))[0])(params)
    with jax.set_mesh(mesh):
        split = architectures.jit(slope)(jax.device_put(params, places), sharding.put(batch, mesh))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), split, architectures.jit(slope)(
        params, batch))


class Toy:
    """A model of 4 tokens whose next one depends on the last two alone, by a table [4 4 4]; 0 ends a text."""
    limit, ahead, continues = 0, 0, False

    def prefill(self, params, tokens, lengths, slots):
        last = jnp.take_along_axis(tokens, lengths[:, None] - 1, 1)[:, 0]
        return params[last, 0], {'length': lengths, 'last': last * 0}

    def decode(self, params, tokens, cache):
        return params[cache['last'], tokens], {'length': cache['length'] + 1, 'last': tokens}

    def rows_of(self, cache, rows):
        return {name: part[rows] for name, part in cache.items()}

    def __hash__(self):
        return 0


@pytest.mark.parametrize('alpha', [0.0, 0.6, 2.0])
def test_many_beams_find_the_likeliest_text(alpha):
    params = jnp.asarray(np.random.default_rng(4).standard_normal((4, 4, 4)) * 2, jnp.float32)
    prompts, how = (np.array([[1], [2], [3]], np.int32), np.ones(3, np.int32)), generate.Beams(64, alpha)
    found, scores = generate.beam.search(Toy(), how, params, prompts, end=0, length=4, slots=8)

    def score(prompt, text):
        total, last, before = 0.0, 0, prompt
        for token in text:
            total += float(jax.nn.log_softmax(params[before, last])[token])
            before, last = last, token
        return total / ((5 + len(text)) / 6) ** alpha
    for row in range(3):
        texts = [(*body, 0) for n in range(4) for body in itertools.product((1, 2, 3), repeat=n)]
        texts += list(itertools.product((1, 2, 3), repeat=4))
        best = max(texts, key=partial(score, int(prompts[0][row, 0])))
        assert tuple(found[row][:len(best)].tolist()) == best
        np.testing.assert_allclose(scores[row], score(int(prompts[0][row, 0]), best), rtol=1e-5)


def test_one_beam_is_greedy_sampling(tmp_path):
    model = replace(MODELS['rope'], vocab=258, start=257)
    params, encoder = parameters(model), data.Bytes().fit((), tmp_path)
    *_, samples = generate.generate(model, params, encoder, ['one', 'longer one'], length=12,
                                    sampler=generate.Sampler(temperature=0))
    beams = generate.beam_search(model, params, encoder, ['one', 'longer one'], generate.Beams(1), length=12)
    assert beams == [sample.text for sample in samples]


@pytest.fixture
def files(tmp_path):
    words = ['ab', 'bcd', 'a', 'dddd', 'cab']
    lines = [' '.join(words[(i * 7 + j) % 5] for j in range(1 + i % 4)) for i in range(60)]
    (tmp_path / 'train.de').write_text('\n'.join(lines) + '\n')
    (tmp_path / 'train.en').write_text('\n'.join(line.upper() for line in lines))
    return str(tmp_path / 'train.de'), str(tmp_path / 'train.en')


def corpus(files, context=24, **fields):
    source = data.Parallel(*map(data.Lines, files))
    return data.Corpus(train=source, valid=source, tokenizer=data.Bytes(), context=context, batch=4, packing='pairs',
                       **fields)


def test_rows_hold_whole_pairs_side_by_side(files, tmp_path):
    stream, encoder = corpus(files).open(tmp_path, 'valid'), data.Bytes().fit((), tmp_path)
    read = []
    for step in range(stream.batches):
        batch = stream.batch_at(step)
        for row in range(4):
            for number in range(1, int(batch['segments'][row].max() * batch['weights'][row, 0]) + 1):
                source = batch['encoder_inputs'][row][batch['encoder_segments'][row] == number]
                target = batch['targets'][row][batch['segments'][row] == number]
                inputs = batch['inputs'][row][batch['segments'][row] == number]
                assert source[-1] == target[-1] == inputs[0] == 257 and (inputs[1:] == target[:-1]).all()
                read.append((encoder.decode(source), encoder.decode(target)))
    lines = open(files[0]).read().splitlines()
    assert sorted(read) == sorted((line, line.upper()) for line in lines)
    example = corpus(files).example()
    assert {name: (x.shape, x.dtype) for name, x in example.items()} == {
        name: (x.shape, x.dtype) for name, x in corpus(files).open(tmp_path).batch_at(0).items()}


def test_pairs_that_do_not_match_are_refused_or_left_out(files, tmp_path, capsys):
    with open(files[1], 'a') as file:
        file.write('\nONE MORE')
    with pytest.raises(config.Error, match='ends after 60 documents'):
        corpus(files).open(tmp_path)
    (tmp_path / 'a').write_text('x\n\nz\n')
    (tmp_path / 'b').write_text('X\nY\nZ\n')
    found = list(data.Parallel(data.Lines(str(tmp_path / 'a')), data.Lines(str(tmp_path / 'b'))).records())
    assert [getattr(record, 'text', None) for record in found] == ['x', 'X', None, 'z', 'Z']
    assert found[2].place.endswith('a:2')


@pytest.mark.parametrize('make, words', [
    (lambda s: data.Pick(s, 0.0, 0.5), 'of pairs would part them'),
    (lambda s: data.Corpus(s, None, data.Bytes(), 8, 2).open('.'), 'packing=windows and .* has pairs'),
    (lambda s: data.Corpus(data.Synthetic(), None, data.Bytes(), 8, 2, 'pairs').open('.'), 'no pairs of texts; try'),
    (lambda s: train.Conditional().check(architectures.DECODERS['gpt2']), 'try model=EncoderDecoder'),
    (lambda s: EncoderDecoder(50, 50), 'start=50 is none of vocab=50'),
    (lambda s: EncoderDecoder(48, 1, 48, encoder=EncoderDecoder(48, 1, 48).decoder), 'try model.encoder'),
    (lambda s: EncoderDecoder(48, 1, 48, decoder=Half(layer=Layer())), 'has to read the memory')])
def test_what_cannot_be_is_refused(make, words, files):
    with pytest.raises(config.Error, match=words):
        make(data.Parallel(*map(data.Lines, files)))


def test_it_trains_scores_and_writes(files, tmp_path, capsys):
    file = tmp_path / 'upper.py'
    file.write_text(f'''
from dataclasses import replace
from experiments import tiny
from lm import data, optim, train
from lm.models import EncoderDecoder, Half, Layer
from lm.nn import Attention, NoPE

def config():
    source = data.Parallel(data.Lines({files[0]!r}), data.Lines({files[1]!r}))
    across = Attention(4, causal=False, position=NoPE())
    return train.Config(
        model=EncoderDecoder(258, 257, 64, Half(1, Layer(Attention(4, causal=False))),
                             Half(1, Layer(Attention(4), cross=across))),
        data=data.Corpus(train=source, valid=source, tokenizer=data.Bytes(), context=32, batch=16, packing='pairs'),
        optimizer=optim.AdamW(peak=3e-3, schedule=optim.Constant()), steps=60,
        objective=train.Conditional(sample='cab a'))
''')
    assert cli.main(['train', str(file), f'--workdir={tmp_path}/run', f'--cache={tmp_path}/cache']) == 0
    losses = [record['loss'] for record in records.read(tmp_path / 'run') if 'loss' in record]
    assert losses[-1] < 0.5 * losses[0]
    out = capsys.readouterr().out
    assert 'validation loss' in out and 'bits_per_byte' not in out and 'cab a\n' in out
    assert cli.main(['generate', f'{tmp_path}/run', 'dddd a', '--temperature=0', '--length=10']) == 0
    capsys.readouterr()
    (tmp_path / 'sources').write_text('cab a\n\nbcd\n')
    assert cli.main(['translate', f'{tmp_path}/run', f'{tmp_path}/sources', '--length=4', '--beams=2']) == 0
    lines = capsys.readouterr().out.split('\n')
    assert len(lines) == 4 and lines[0] and not lines[1] and lines[2]
