"""Every experiment file runs two steps at toy size, on text of its own kind made here."""
import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from lm import bench, config, data, train
from lm.commands import train as command
from lm.data.cache import fit
from lm.models import Decoder, Layer
from lm.nn import MLP, Attention, Experts, Learned, Silu
from lm.parallel import sharding
from lm.sweep import trials

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'experiments').rglob('*.py'))
BASES = [file for file in FILES if 'def config' in file.read_text()]
SWEEPS = [file for file in FILES if 'def sweep' in file.read_text()]


def toy_layer(layer):
    attention = dataclasses.replace(layer.attention, heads=2, kv_heads=min(layer.attention.kv_heads, 1), head_dim=0,
                                    window=min(layer.attention.window, 4))
    sizes = {'count': 4, 'top_k': 2, 'ff': 8} if isinstance(layer.mlp, Experts) else {'ff': 0}
    return dataclasses.replace(layer, attention=attention, mlp=dataclasses.replace(layer.mlp, **sizes))


def toy(settings, **changes):
    """Returns the settings with everything that costs time made small, and nothing else changed but model fields."""
    model, small = settings.model, {'width': 16, 'vocab': 258}
    if isinstance(model, Decoder):
        small |= {'depth': 2, 'pattern': tuple(map(toy_layer, model.pattern)),
                  'layer': model.layer if model.pattern else toy_layer(model.layer)}
        if isinstance(model.embedding.position, Learned):
            small['embedding'] = dataclasses.replace(model.embedding, position=Learned(8))
    context = 8
    if not hasattr(model, 'width'):  # an image has its size
        small, context = {'vocab': 258, 'ff': 16}, settings.data.context
    small |= changes
    corpus = dataclasses.replace(settings.data, context=context, batch=2 * settings.accumulate)
    schedule = settings.optimizer.schedule
    brief = {'warmup': 1} if hasattr(schedule, 'warmup') else {}
    optimizer = dataclasses.replace(settings.optimizer, schedule=dataclasses.replace(schedule, **brief))
    return dataclasses.replace(settings, model=dataclasses.replace(model, **small), data=corpus,
                               optimizer=optimizer, steps=2)


@pytest.mark.parametrize('file', BASES, ids=lambda file: file.stem)
def test_every_experiment_runs_two_steps_at_toy_size(file):
    settings = toy(config.load(file).config)
    program = train.program(settings, sharding.make_mesh({'data': 1}, jax.devices()[:1]))
    tokens = np.random.default_rng(0).integers(258, size=(2, *settings.data.example()['inputs'].shape), dtype=np.int32)
    with jax.set_mesh(program.mesh):
        state = program.init()
        for step in range(2):
            batch = {**settings.data.example(), 'inputs': tokens[step], 'targets': tokens[1 - step]}
            state, measured = program.step(state, batch)
            assert np.isfinite(float(measured['grad_norm'])) and int(measured['bad']) == 0
    assert int(state.step) == 2


def part(source):
    """Returns a fiftieth of a source: of each of its documents, or of its pairs or images."""
    if isinstance(source, data.Parallel):
        return data.Parallel(*(data.Pick(side, 0.0, 0.02) for side in (source.source, source.target)))
    kind = data.Cut if type(source).__module__.startswith('lm.') else data.Pick
    return kind(source, 0.0, 0.02)


def abridged(corpus, cache):
    """Returns (a corpus that costs little to encode and to score, how many tokens it has)."""
    if isinstance(corpus.tokenizer, data.SentencePiece):
        tokenizer = dataclasses.replace(corpus.tokenizer, size=2048, sample=100_000)
        corpus = dataclasses.replace(corpus, tokenizer=tokenizer, train=part(corpus.train))
    if not type(corpus.train).__module__.startswith('lm.'):
        corpus = dataclasses.replace(corpus, train=part(corpus.train))
    corpus = dataclasses.replace(corpus, valid=part(corpus.valid))
    return corpus, fit(corpus.train, corpus.tokenizer, cache).size


@pytest.mark.parametrize('file', [pytest.param(file, marks=pytest.mark.long if 'ablations' in file.parts else ())
                                  for file in BASES], ids=lambda file: file.stem)
def test_every_experiment_whose_text_is_here_ends_with_code_0_and_a_sample(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    loaded, devices = config.load(file), jax.devices()[:1]
    if isinstance(loaded.config.data.train, data.Tfds):
        pytest.skip('the text would have to be downloaded')
    try:
        loaded.config.data.train.fingerprint()
    except config.Error as error:
        pytest.skip(str(error))
    corpus, size = abridged(loaded.config.data, tmp_path)
    model = loaded.config.model
    kept = {'embedding': model.embedding} if isinstance(model, Decoder) else {}
    settings = toy(dataclasses.replace(loaded.config, data=corpus), vocab=size, **kept)
    monkeypatch.setattr(jax, 'devices', lambda: devices)
    monkeypatch.setattr(config, 'load', lambda *words: dataclasses.replace(loaded, config=settings))
    assert command.main(str(file), workdir=str(tmp_path / 'run'), cache=str(tmp_path)) == 0
    assert 'is finished, without' not in capsys.readouterr().err
    if type(settings.objective).show is not train.Objective.show:
        prompt = getattr(settings.objective, 'sample', '')
        assert len((tmp_path / 'run' / 'sample.txt').read_text(encoding='utf-8')) > len(prompt)


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_every_experiment_says_how_it_is_run(file):
    verb = 'sweep' if file in SWEEPS else 'train'
    assert f'lm {verb} {file.relative_to(ROOT)}' in file.read_text()


@pytest.mark.parametrize('file', SWEEPS, ids=lambda file: file.stem)
def test_every_sweep_can_be_begun(file, tmp_path):
    overrides = config.sweep(file)
    begun = trials.plan(config.load(file), tmp_path, overrides)
    assert len({trial.id for trial in begun.trials}) == len(overrides) > 1


@pytest.mark.parametrize('name,count', [('gpt2_124m', 124_373_760), ('llama_1b', 1_040_254_976)])
def test_the_large_ones_have_their_size(name, count):
    settings = config.load(ROOT / 'experiments' / f'{name}.py').config
    shapes = jax.eval_shape(settings.model.init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count


@pytest.mark.long
@pytest.mark.parametrize('name', ['gpt2_124m', 'llama_1b'])
def test_the_large_ones_compile_at_full_size(name):
    overrides = ['model.execution.unroll=1', 'mesh.data=2', 'mesh.fsdp=4']
    settings = config.load(ROOT / 'experiments' / f'{name}.py', overrides).config
    settings = dataclasses.replace(settings, data=dataclasses.replace(settings.data, batch=8 * settings.accumulate))
    program = train.program(settings)
    with jax.set_mesh(program.mesh):
        step = program.step.lower(program.abstract, settings.data.example()).compile()
    shares = sum(x.sharding.shard_shape(x.shape) != x.shape and x.size for x in jax.tree.leaves(program.abstract))
    assert shares > 0.99 * sum(x.size for x in jax.tree.leaves(program.abstract))
    assert step.memory_analysis().argument_size_in_bytes < 1.1 * 4 * shares / 4


def test_flops_are_those_of_the_formula():
    model = config.load(ROOT / 'experiments' / 'shakespeare_char.py').config.model
    assert model.flops(64) == 6 * (4 * 12 * 128 ** 2 + 65 * 128) + 6 * 4 * 128 * 64


def test_flops_of_experts_are_of_those_a_token_is_sent_to():
    model = Decoder(128, 2, 16, Layer(Attention(2), Experts(count=8, top_k=2, ff=12, shared=1)))
    layer = 4 * 16 * 16 + 16 * 8 + (2 + 1) * 3 * 16 * 12
    assert model.flops(32) == 6 * (2 * layer + 128 * 16) + 6 * 2 * 16 * 32


def test_flops_count_windows_grouped_heads_and_gates_of_each_layer_of_a_pattern():
    pattern = tuple(Layer(Attention(4, 2, head_dim=6, window=window), MLP(20, Silu(), gated=True)) for window in (8, 0))
    model = Decoder(100, 3, 16, pattern=pattern)
    weights = 2 * 16 * 6 * (4 + 2) + 3 * 16 * 20
    assert model.flops(32) == 6 * (3 * weights + 100 * 16) + 12 * 4 * 6 * (7 + 16 + 7)  # a window of 8 in 32 shows 7
    assert model.flops(5) == 6 * (3 * weights + 100 * 16) + 6 * 4 * 6 * 3 * 5


def test_flops_of_all_matrices_are_six_a_parameter_and_biases_are_none():
    layer = Layer(Attention(4, 2, bias='all'), MLP(bias=True))
    model = Decoder(128, 2, 16, layer)
    matrices = [leaf for path, leaf in jax.tree.leaves_with_path(jax.eval_shape(model.init, jax.random.key(0)))
                if not path[-1].key.endswith(('bias', 'scale'))]
    assert model.flops(32) == 6 * sum(leaf.size for leaf in matrices) + 6 * 2 * 16 * 32


def test_bench_measures_a_tiny_experiment():
    settings = toy(config.load(ROOT / 'experiments' / 'tiny.py').config)
    found = bench.measure(dataclasses.replace(settings, mesh={'data': -1}, data=dataclasses.replace(
        settings.data, batch=8)), steps=2)
    assert found['tokens_per_step'] == 64 and found['devices'] == 8
    assert found['step_seconds'] > 0 and 0 < found['mfu'] < 1 and found['host_peak_gb'] > 0
    assert bench.measure_loader(settings.data, 5) > 0


def test_shakespeare_is_nanogpts_split(shared, tmp_path):
    assert (shared / 'tinyshakespeare/input.txt').stat().st_size == 1_115_394
    settings = config.load(ROOT / 'experiments' / 'shakespeare_char.py').config
    stream, valid = (settings.data.open(tmp_path, split) for split in ('train', 'valid'))
    assert stream.encoder.size == 65
    assert sum(part.tokens.size for part in stream.caches) == 1_003_854
    assert sum(part.tokens.size for part in valid.caches) == 111_540


def test_wikitext2_finds_its_files(shared):
    wanted = [str(shared / f'wikitext2/{name}.txt.gz') for name in ('train', 'test')]
    corpus = config.load(ROOT / 'experiments' / 'wikitext2.py').config.data
    assert [file.path for source in (corpus.train, corpus.valid) for file in source.files()] == wanted


def test_no_experiment_names_a_folder_of_one_machine():
    paths = [value for file in BASES for key, value in config.flatten(config.load(file).config).items()
             if key.rpartition('.')[2] in ('pattern', 'file', 'model', 'data_dir') and isinstance(value, str) and value]
    assert len(paths) > 10
    assert not [path for path in paths if path.startswith(('/', '~', '.', 'data/'))]


def test_a_source_of_its_own_lives_in_the_experiment_file(tmp_path):
    file = tmp_path / 'own.py'
    file.write_text((ROOT / 'experiments' / 'tiny.py').read_text().replace(
        'TEXT = data.Synthetic(count=300, length=2000)', OWN))
    loaded = config.load(file)
    again = config.build(config.dump(loaded.config), file)
    assert [document.text for document in again.data.train.documents()] == ['to be or not to be'] * 2
    assert isinstance(loaded.config.data.train.source, data.Source)


OWN = """
import dataclasses


@dataclasses.dataclass(frozen=True)
class Twice(data.Source):
    text: str = 'to be or not to be'
    label = 'twice'

    def records(self):
        return (data.Document(self.text, self.label) for _ in range(2))

    def fingerprint(self):
        return self.text


TEXT = Twice()
"""
