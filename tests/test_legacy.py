"""Runs, records and overrides of the version before layers were values: read, resumed, and answered by the new names.

old_run/ is a run of that version, stopped at step 3 of 6: every field of its Decoder away from its default, as far as
they go together. Its metrics.jsonl goes on to step 6, and logits.npy has its logits at step 3.
"""
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import simulated
from architectures import DECODERS, jit

from lm import config, data, optim, records, train
from lm.config.legacy import upgraded
from lm.models import Decoder, Embedding, Head, Layer, MupBase, OutputNorm, SandwichNorm
from lm.nn import (
    MLP,
    Alibi,
    Attention,
    Execution,
    Experts,
    Gelu,
    LayerNorm,
    Learned,
    NoPE,
    Relu,
    Relu2,
    RMSNorm,
    Rope,
    Silu,
    Sinusoidal,
)
from lm.parallel import Pipeline, sharding
from lm.report import trials as reported
from lm.report import variants
from lm.sweep import trials
from lm.train import runs, session

OLD_RUN = pathlib.Path(__file__).parent / 'old_run'
OLD_SWEEP = pathlib.Path(__file__).parent / 'old_sweep'
SWEEP_EXPERIMENT = '''
from lm import data, optim, train
from lm.models import Decoder, Layer
from lm.nn import Attention


def config():
    return train.Config(
        model=Decoder(vocab=258, depth=1, width=16, layer=Layer(Attention(2))),
        data=data.Corpus(train=data.Synthetic(count=20, length=100), valid=None, tokenizer=data.Bytes(), context=16,
                         batch=4),
        optimizer=optim.AdamW(peak=1e-3), steps=6, cadence=train.Cadence(log=1))
'''
EXPERIMENT = '''
from lm import data, optim, train
from lm.models import Decoder, Embedding, Head, Layer, MupBase, SandwichNorm
from lm.nn import MLP, Attention, Execution, Gelu, LayerNorm, RMSNorm, Rope
from lm.parallel import Pipeline

TEXT = data.Synthetic(count=40, length=200)


def layer(window, position):
    return Layer(
        Attention(4, 2, 6, window=window, position=position, softcap=3.0, qk_norm=RMSNorm(1e-4), bias='all'),
        MLP(20, Gelu(), gated=True, bias=True), norm=LayerNorm(1e-4), residual=SandwichNorm(), parallel=True,
        dropout=0.1)


def config():
    return train.Config(
        model=Decoder(vocab=36, depth=5, width=16,
                      pattern=(layer(3, Rope(20.0, 1.0, 16, 1.5, 3.0)), layer(5, Rope(20.0, 1.0, 16, 1.5, 3.0)),
                               layer(0, Rope(500.0, 4.0, 16, 1.5, 3.0))),
                      embedding=Embedding(scaled=True, dropout=0.1), head=Head(tied=False, softcap=5.0),
                      execution=Execution(remat='dots', unroll=1, kernel='reference', vocab_chunks=2,
                                          pipeline=Pipeline(2)),
                      base=MupBase(width=8, heads=2)),
        data=data.Corpus(train=data.Pick(TEXT, 0.0, 0.9), valid=data.Pick(TEXT, 0.9, 1.0), tokenizer=data.Chars(),
                         context=24, batch=8),
        optimizer=optim.AdamW(peak=2e-2, schedule=optim.Constant(), weight_decay=0.1), steps=6, seed=7,
        objective=train.NextToken(z_loss=0.01, smoothing=0.1, sample='ab', baselines=True),
        cadence=train.Cadence(log=1, eval=3, eval_batches=2, save=3, keep=4),
        diagnosis=train.Diagnosis(spike=6.0, noise_scale=True), mesh={'data': 1}, accumulate=2, patience=4)
'''


@pytest.fixture
def experiment(tmp_path):
    file = tmp_path / 'new.py'
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture
def directory(tmp_path):
    """Returns that of a copy of the old run."""
    return shutil.copytree(OLD_RUN, tmp_path / 'run')


def test_the_record_of_an_old_run_is_the_experiment_in_new_words(experiment):
    assert config.diff(runs.read(OLD_RUN), config.load(experiment).config) == {}


def test_an_old_checkpoint_gives_the_same_logits(directory):
    trained = runs.load(directory)
    assert trained.step == 3 and trained.encoder.size == 36
    tokens = np.random.default_rng(0).integers(0, 36, (2, 20)).astype(np.int32)
    segments = np.array([[1] * 9 + [2] * 11, [1] * 20], np.int32)
    positions = np.array([[*range(9), *range(11)], [*range(20)]], np.int32)
    expected = np.load(OLD_RUN / 'logits.npy')
    assert expected.std() > 0.2
    logits = jit(trained.settings.model.logits)(jax.device_get(trained.params), tokens, segments, positions)
    np.testing.assert_allclose(logits, expected, atol=2e-6)


def measured(directory):
    """Returns ({(step, name): value} of what a run's record says of its training, but its speed, last scores)."""
    record = records.read(directory)
    return {(values['step'], name): value for values in record for name, value in values.items()
            if name not in ('step', 'tokens_per_second') and not name.startswith('valid/')}, record[-1]


def test_an_old_run_resumes_as_it_went_on(directory, experiment, tmp_path):
    loaded = config.load(experiment)
    run = runs.Run(directory, loaded)
    try:
        session.train(loaded.config, run, tmp_path / 'cache', sharding.make_mesh({'data': 1}, jax.devices()[:1]))
    finally:
        run.close()
    (then, old_scores), (now, scores) = measured(OLD_RUN), measured(directory)
    assert then.keys() == now.keys()
    assert scores['valid/tokens'] == 999 > old_scores['valid/tokens']  # versions before dropped the end of the text
    assert scores['valid/loss'] == pytest.approx(old_scores['valid/loss'], rel=1e-2)
    for key, value in then.items():
        assert now[key] == pytest.approx(value, rel=5e-3), key  # its micro-batches drew another dropout
    assert json.loads((directory / 'config.json').read_text())['config']['cadence']['save'] == 3


@pytest.mark.parametrize('override, now', [
    ('model.activation=silu', 'model.layer.mlp.activation'), ('model.heads=8', 'model.layer.attention.heads'),
    ('model.kv_heads=1', 'model.layer.attention.kv_heads'), ('model.ff=8', 'model.layer.mlp.ff'),
    ('model.windows=3,0', 'model.layer.attention.window'), ('model.norm=rms', 'model.layer.norm'),
    ('model.norm_place=both', 'model.layer.residual'), ('model.position=Rope', 'model.layer.attention.position'),
    ('model.position.base=3.0', 'model.layer.attention.position.base'), ('model.tied=false', 'model.head.tied'),
    ('model.dtype=bfloat16', 'model.execution.dtype'), ('model.loss_parts=2', 'model.execution.vocab_chunks'),
    ('model.quantized=int8', 'model.execution.precision'),
    ('model.pipeline.batches=4', 'model.execution.pipeline.microbatches'),
    ('model.experts.top=2', 'model.layer.mlp.top_k'), ('model.experts.room=2.0', 'model.layer.mlp.capacity_factor'),
    ('model.z_loss=0.1', 'objective.z_loss'), ('model.smoothing=0.1', 'objective.smoothing'),
    ('log_every=5', 'cadence.log'), ('save_every=5', 'cadence.save'), ('keep=5', 'cadence.keep'),
    ('spike=5.0', 'diagnosis.spike'), ('sample=a', 'objective.sample')])
def test_an_old_override_is_answered_by_the_new_one(override, now):
    key = override.partition('=')[0]
    sparse = settings(model=Decoder(50, layer=Layer(mlp=Experts(8, 2, 12))))
    with pytest.raises(config.Error) as caught:
        config.override(sparse, {key: override.partition('=')[2]})
    assert str(caught.value) == f"no field '{key}'; it is {now} now."
    assert now in dict(config.overrides.branches(sparse)) or now.endswith('.ff')


def settings(**fields):
    corpus = data.Corpus(train=data.Synthetic(count=9, length=99), valid=None, tokenizer=data.Bytes(), context=8,
                         batch=4)
    return train.Config(**{'model': Decoder(50), 'data': corpus, 'optimizer': optim.AdamW(), 'steps': 3, **fields})


def old_decoder(**fields):
    """Returns the record of a Decoder of the older version, with its defaults but for the fields given."""
    return {'type': 'lm.models.decoder:Decoder', 'vocab': 50, 'depth': 6, 'width': 384, 'heads': 6, 'kv_heads': 0,
            'head_dim': 0, 'ff': 0, 'position': old_rope(), 'windows': {'type': 'tuple', 'value': [0]}, 'norm': 'rms',
            'norm_place': 'pre', 'norm_epsilon': 1e-05, 'activation': 'gelu', 'bias': 'none', 'qk_norm': False,
            'parallel': False, 'experts': None, 'tied': True, 'scaled_embedding': False, 'attention_softcap': 0.0,
            'logit_softcap': 0.0, 'dropout': 0.0, 'z_loss': 0.0, 'smoothing': 0.0, 'dtype': 'float32',
            'quantized': 'none', 'loss_parts': 1, 'remat': 'none', 'unroll': 0, 'kernel': 'auto',
            'pipeline': {'type': 'lm.pipeline:Pipeline', 'batches': 0, 'circuits': 1},
            'base': {'type': 'lm.models.decoder:Base', 'width': 0, 'heads': 0, 'kv_heads': 0, 'head_dim': 0, 'ff': 0,
                     'expert_ff': 0}, **fields}


def old_rope(**fields):
    return {'type': 'lm.positions:Rope', 'base': 10000.0, 'factor': 1.0, 'original': 0, 'low': 1.0, 'high': 4.0,
            'local_base': 0.0, 'fraction': 1.0, **fields}


def old_experts(**fields):
    return {'type': 'lm.models.experts:Experts', 'count': 8, 'top': 2, 'ff': 12, 'shared': 1, 'score': 'softmax',
            'normalised': True, 'scale': 1.0, 'balance': 0.01, 'z_loss': 0.0, 'bias_rate': 0.0, 'room': 0.0, **fields}


def windows(*sizes):
    return {'type': 'tuple', 'value': [*sizes]}


UNORDERED = Layer(Attention(position=NoPE()))
RECORDS = {
    'defaults': ({}, {}),
    'learned': ({'position': {'type': 'lm.positions:Learned', 'length': 20}, 'dropout': 0.1},
                {'layer': Layer(Attention(position=NoPE()), dropout=0.1),
                 'embedding': Embedding(Learned(20), dropout=0.1)}),
    'sinusoidal': ({'position': {'type': 'lm.positions:Sinusoidal', 'base': 99.0}, 'scaled_embedding': True},
                   {'layer': UNORDERED, 'embedding': Embedding(Sinusoidal(99.0), scaled=True)}),
    'experts': ({'experts': old_experts(score='sigmoid', room=2.0), 'activation': 'swiglu', 'bias': 'qkv'},
                {'layer': Layer(Attention(bias='qkv'), Experts(8, 2, 12, Silu(), True, 1, 'sigmoid',
                                                               capacity_factor=2.0))}),
    'plain experts': ({'experts': old_experts(), 'activation': 'relu2'},
                      {'layer': Layer(mlp=Experts(8, 2, 12, Relu2(), False, 1))}),
    'post': ({'norm_place': 'post', 'norm': 'layer', 'activation': 'relu', 'ff': 64},
             {'layer': Layer(mlp=MLP(64, Relu()), norm=LayerNorm(bias=False), residual=OutputNorm())}),
    'both': ({'norm_place': 'both', 'norm': 'layer_bias', 'norm_epsilon': 1e-6, 'qk_norm': True, 'parallel': True},
             {'layer': Layer(Attention(qk_norm=RMSNorm(1e-6)), norm=LayerNorm(1e-6), residual=SandwichNorm(),
                             parallel=True)}),
    'gemma3': ({'windows': windows(4, 4, 0), 'position': old_rope(factor=8.0, local_base=10.0), 'activation': 'geglu',
                'bias': 'all'},
               {'pattern': tuple(Layer(Attention(window=window, position=position, bias='all'),
                                       MLP(activation=Gelu(), gated=True, bias=True))
                                 for window, position in [(4, Rope(10.0)), (4, Rope(10.0)), (0, Rope(factor=8.0))])}),
    'one window': ({'windows': windows(4), 'heads': 12, 'kv_heads': 4, 'head_dim': 8},
                   {'layer': Layer(Attention(12, 4, 8, window=4))}),
    'softcaps': ({'attention_softcap': 2.0, 'logit_softcap': 3.0, 'tied': False},
                 {'layer': Layer(Attention(softcap=2.0)), 'head': Head(tied=False, softcap=3.0)}),
    'execution': ({'dtype': 'bfloat16', 'quantized': 'int8', 'loss_parts': 2, 'remat': 'offload', 'unroll': 3,
                   'kernel': 'cudnn', 'pipeline': {'type': 'lm.pipeline:Pipeline', 'batches': 4, 'circuits': 2}},
                  {'execution': Execution('bfloat16', 'int8', 'offload', 3, 'cudnn', 2, Pipeline(4, 2))}),
    'base': ({'base': {'type': 'lm.models.decoder:Base', 'width': 64, 'heads': 2}}, {'base': MupBase(64, 2)}),
}


@pytest.mark.parametrize('old, new', RECORDS.values(), ids=RECORDS)
def test_an_old_decoder_is_read_as_values_of_layers(old, new):
    assert config.build(old_decoder(**old)) == Decoder(50, **new)


@pytest.mark.parametrize('old', [old for old, _ in RECORDS.values()], ids=RECORDS)
def test_an_upgraded_record_is_upgraded_no_more(old):
    once = upgraded(old_decoder(**old))
    assert upgraded(once) == once


@pytest.mark.parametrize('model', DECODERS.values(), ids=DECODERS)
def test_a_present_record_is_left_as_it_is(model):
    dumped = config.dump(settings(model=model))
    assert upgraded(dumped) == dumped and config.build(dumped).model == model


def test_pipelines_and_experts_are_renamed_wherever_they_stand():
    old = [{'type': 'lm.pipeline:Pipeline', 'batches': 4, 'circuits': 2}, {'name': [old_experts(room=1.5)]}]
    pipeline, named = upgraded(old)
    assert pipeline == {'type': 'lm.parallel:Pipeline', 'microbatches': 4, 'repeats': 2}
    (experts,) = named['name']
    assert experts['type'] == 'lm.nn:Experts'
    assert (experts['top_k'], experts['router'], experts['capacity_factor']) == (2, 'softmax', 1.5)
    assert not {'top', 'score', 'room'} & experts.keys()


def test_loose_fields_of_a_config_are_its_groups():
    groups = {'cadence', 'diagnosis', 'objective', 'start'}
    old = {name: value for name, value in config.dump(settings()).items() if name not in groups} | {
        'log_every': 3, 'eval_every': 4, 'eval_batches': 5, 'save_every': 6, 'keep': 7, 'spike': 5.0,
        'noise_scale': False, 'sample': 'once', 'baselines': True, 'model': old_decoder(z_loss=0.1, smoothing=0.2)}
    assert config.build(old) == settings(
        cadence=train.Cadence(3, 4, 5, 6, 7), diagnosis=train.Diagnosis(5.0),
        objective=train.NextToken(z_loss=0.1, smoothing=0.2, sample='once', baselines=True))


def test_a_record_of_another_types_fields_is_left_alone():
    record = {'type': 'experiment:Mine', 'heads': 4, 'top': 2, 'windows': windows(3)}
    assert upgraded(record) == record


@pytest.mark.parametrize('old, new', [RECORDS[name] for name in ('defaults', 'gemma3', 'softcaps')])
def test_an_upgraded_record_is_what_is_recorded_now(old, new):
    assert upgraded(old_decoder(**old)) == config.dump(Decoder(50, **new))


def test_a_run_of_an_older_version_is_of_the_same_variant_in_a_report(tmp_path):
    simulated.sweep(tmp_path, {'a': ({}, 3.0), 'b': (simulated.BETTER, 2.9)}, seeds=2)
    for name in ('a-0', 'a-1', 'b-0', 'b-1'):
        file, position = tmp_path / name / 'config.json', Rope() if name.startswith('a') else Alibi()
        run = json.loads(file.read_text())
        if name.endswith('0'):
            run['config']['objective'] = config.dump(train.NextToken())
            run['config']['model'] = config.dump(Decoder(50, layer=Layer(Attention(position=position))))
        else:
            del run['config']['cadence']
            model = old_decoder(position=old_rope() if name.startswith('a') else {'type': 'lm.positions:Alibi'})
            run['config'] |= {'log_every': 50, 'sample': '\n', 'baselines': False, 'model': model}
        file.write_text(json.dumps(run))
    groups = variants.gather(reported.read([tmp_path])[0], 'optimizer.peak')
    assert sorted((group.name, len(group.trials)) for group in groups) == [('baseline', 2), ('position=Alibi', 2)]


def test_a_sweep_of_the_version_before_opens_with_its_trials_and_plans_none_anew(tmp_path):
    """old_sweep/ varies dropout, norms, windows, position, z_loss, activation, which have moved, and some that stay."""
    directory = shutil.copytree(OLD_SWEEP, tmp_path / 'sweep')
    sweep = trials.open_sweep(directory)
    settings = [trial.settings for trial in sweep.trials]
    layers = [each.model.layers[0] for each in settings]
    assert (layers[0].dropout, settings[0].model.embedding.dropout) == (0.1, 0.1)
    assert (layers[1].norm, layers[1].residual) == (LayerNorm(bias=False), OutputNorm())
    assert [layer.attention.window for layer in settings[2].model.layers] == [3, 0]
    assert layers[3].attention.position == Rope(1e6)
    assert settings[4].objective.z_loss == 0.1
    assert (settings[5].optimizer.peak, settings[5].model.width) == (1e-2, 32)
    assert layers[6].mlp == MLP(24, Silu(), gated=True)
    assert settings[7] == sweep.base and 'optimizer.peak=0.01' in trials.shown(sweep.trials[5])
    (tmp_path / 'new.py').write_text(SWEEP_EXPERIMENT)
    again = trials.plan(config.load(tmp_path / 'new.py'), directory, [{'optimizer.peak': 1e-2, 'model.width': 32}, {},
                                                                      {'optimizer.peak': 2e-2}])
    assert [trial.id for trial in again.trials[:8]] == [trial.id for trial in sweep.trials]
    assert [trial.overrides for trial in again.trials[8:]] == [{'optimizer.peak': 2e-2}]
    changed = config.diff(trials.open_sweep(directory).trials[2].settings, settings[2])
    assert all(records.free(key) for key in changed)  # the prompt of a sample has another default
