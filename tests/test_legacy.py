"""Records of older versions: what they recorded is built as values of layers, and present records stay as they are."""
import json

import pytest
import simulated

from lm import config, data, optim, train
from lm.config import legacy
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
)
from lm.parallel.pipeline import Pipeline
from lm.report import trials, variants

DECODERS = {
    'defaults': ({'depth': 2}, Decoder(9, 2)),
    'sizes': ({'heads': 4, 'kv_heads': 2, 'head_dim': 6, 'ff': 20, 'width': 16},
              Decoder(9, width=16, layer=Layer(Attention(4, 2, 6), MLP(20)))),
    'gpt2': ({'position': {'type': 'lm.positions:Learned', 'length': 20}, 'norm': 'layer_bias', 'bias': 'all',
              'dropout': 0.1},
             Decoder(9, layer=Layer(Attention(position=NoPE(), bias='all'), MLP(bias=True), norm=LayerNorm(),
                                    dropout=0.1), embedding=Embedding(Learned(20), dropout=0.1))),
    'llama': ({'activation': 'swiglu', 'tied': False, 'norm_epsilon': 1e-6, 'bias': 'qkv'},
              Decoder(9, layer=Layer(Attention(bias='qkv'), MLP(activation=Silu(), gated=True), norm=RMSNorm(1e-6)),
                      head=Head(tied=False))),
    'gemma3': ({'activation': 'geglu', 'qk_norm': True, 'norm_place': 'both', 'scaled_embedding': True, 'depth': 3,
                'windows': {'type': 'tuple', 'value': [3, 0]},
                'position': {'type': 'lm.positions:Rope', 'base': 100.0, 'factor': 4.0, 'local_base': 10.0}},
               Decoder(9, 3, pattern=tuple(
                   Layer(Attention(window=window, position=rope, qk_norm=RMSNorm()), MLP(activation=Gelu(), gated=True),
                         residual=SandwichNorm()) for window, rope in ((3, Rope(10.0)), (0, Rope(100.0, 4.0)))),
                       embedding=Embedding(scaled=True))),
    'gemma2': ({'windows': {'type': 'tuple', 'value': [4]}, 'attention_softcap': 1.5, 'logit_softcap': 2.0},
               Decoder(9, layer=Layer(Attention(window=4, softcap=1.5)), head=Head(softcap=2.0))),
    'olmo2': ({'norm': 'layer', 'norm_place': 'post', 'activation': 'relu', 'parallel': True},
              Decoder(9, layer=Layer(mlp=MLP(activation=Relu()), norm=LayerNorm(bias=False), residual=OutputNorm(),
                                     parallel=True))),
    'alibi': ({'position': {'type': 'lm.positions:Alibi'}, 'activation': 'relu2'},
              Decoder(9, layer=Layer(Attention(position=Alibi()), MLP(activation=Relu2())))),
    'experts': ({'activation': 'swiglu', 'experts': {
        'type': 'lm.models.experts:Experts', 'count': 8, 'top': 2, 'ff': 16, 'score': 'sigmoid', 'room': 1.5}},
        Decoder(9, layer=Layer(mlp=Experts(8, 2, 16, Silu(), True, router='sigmoid', capacity_factor=1.5)))),
    'execution': ({'dtype': 'bfloat16', 'quantized': 'int8', 'remat': 'full', 'unroll': 2, 'kernel': 'blocked',
                   'loss_parts': 4, 'pipeline': {'type': 'lm.pipeline:Pipeline', 'batches': 4, 'circuits': 2}},
                  Decoder(9, execution=Execution('bfloat16', 'int8', 'full', 2, 'blocked', 4, Pipeline(4, 2)))),
    'base': ({'base': {'type': 'lm.models.decoder:Base', 'width': 64, 'heads': 2}},
             Decoder(9, base=MupBase(width=64, heads=2))),
}


ROPE = {'type': 'lm.positions:Rope', 'base': 10000.0, 'factor': 1.0, 'original': 0, 'low': 1.0, 'high': 4.0,
        'fraction': 1.0, 'local_base': 0.0}
RECORD = {  # as a Decoder(9) was recorded, all of its fields
    'type': 'lm.models.decoder:Decoder', 'vocab': 9, 'depth': 6, 'width': 384, 'heads': 6, 'kv_heads': 0, 'head_dim': 0,
    'ff': 0, 'position': ROPE, 'windows': {'type': 'tuple', 'value': [0]}, 'norm': 'rms', 'norm_place': 'pre',
    'norm_epsilon': 1e-5, 'activation': 'gelu', 'bias': 'none', 'qk_norm': False, 'parallel': False, 'experts': None,
    'tied': True, 'scaled_embedding': False, 'attention_softcap': 0.0, 'logit_softcap': 0.0, 'dropout': 0.0,
    'z_loss': 0.0, 'smoothing': 0.0, 'dtype': 'float32', 'quantized': 'none', 'loss_parts': 1, 'remat': 'none',
    'unroll': 0, 'kernel': 'auto', 'pipeline': {'type': 'lm.pipeline:Pipeline', 'batches': 0, 'circuits': 1},
    'base': {'type': 'lm.models.decoder:Base', 'width': 0, 'heads': 0, 'kv_heads': 0, 'head_dim': 0, 'ff': 0,
             'expert_ff': 0}}


def record(fields):
    return {**RECORD, **fields}


@pytest.mark.parametrize('fields, model', DECODERS.values(), ids=DECODERS)
def test_a_decoder_that_had_a_field_for_every_switch_is_built_as_values_of_layers(fields, model):
    assert config.build(json.loads(json.dumps(record(fields)))) == model
    partial = {'type': 'lm.models.decoder:Decoder', 'vocab': 9, 'bias': 'none', **fields}
    assert config.build(partial) == model


def test_a_whole_record_becomes_what_is_recorded_now():
    assert legacy.upgraded(RECORD) == config.dump(Decoder(9))
    windows = {'windows': {'type': 'tuple', 'value': [3, 0]}}
    pattern = tuple(Layer(Attention(window=window)) for window in (3, 0))
    assert legacy.upgraded(record(windows)) == config.dump(Decoder(9, pattern=pattern))


def test_upgrading_leaves_its_argument_and_what_is_new_as_they_are():
    old = record(DECODERS['gemma3'][0])
    kept = json.dumps(old)
    new = legacy.upgraded(old)
    assert json.dumps(old) == kept and legacy.upgraded(new) == new
    for _, model in DECODERS.values():
        assert legacy.upgraded(config.dump(model)) == config.dump(model)
        assert config.build(config.dump(model)) == model


def test_a_config_that_had_its_cadence_and_objective_as_loose_fields_is_grouped():
    settings = train.Config(
        Decoder(9), data.Corpus(train=data.Synthetic(), valid=None, tokenizer=data.Bytes(), context=8, batch=8),
        optim.AdamW(), steps=7)
    old = config.dump(settings) | {'model': record({'z_loss': 0.1, 'smoothing': 0.2}), 'log_every': 3, 'spike': 4.0}
    del old['objective'], old['cadence'], old['diagnosis']
    built = config.build(old)
    assert built.model == Decoder(9) and built.objective == train.NextToken(z_loss=0.1, smoothing=0.2)
    assert built.cadence == train.Cadence(log=3) and built.diagnosis == train.Diagnosis(spike=4.0)


def test_a_run_of_an_older_version_is_of_the_same_variant_in_a_report(tmp_path):
    simulated.sweep(tmp_path, {'a': ({}, 3.0), 'b': (simulated.BETTER, 2.9)}, seeds=2)
    for name in ('a-0', 'a-1', 'b-0', 'b-1'):
        file, position = tmp_path / name / 'config.json', Rope() if name.startswith('a') else Alibi()
        run = json.loads(file.read_text())
        if name.endswith('0'):
            run['config']['objective'] = config.dump(train.NextToken())
            run['config']['model'] = config.dump(Decoder(9, 2, layer=Layer(Attention(2, position=position))))
        else:
            del run['config']['cadence']
            run['config'] |= {'log_every': 50, 'sample': '\n', 'baselines': False, 'model': record(
                {'depth': 2, 'heads': 2, 'position': config.dump(position)})}
        file.write_text(json.dumps(run))
    groups = variants.gather(trials.read([tmp_path]), 'optimizer.peak')
    assert sorted((group.name, len(group.trials)) for group in groups) == [('baseline', 2), ('position=Alibi', 2)]


@pytest.mark.parametrize('old', [*legacy.DECODER, 'z_loss', 'smoothing'])
def test_an_override_of_a_field_that_moved_names_where_it_is(old):
    settings = train.Config(
        Decoder(9), data.Corpus(train=data.Synthetic(), valid=None, tokenizer=data.Bytes(), context=8, batch=8),
        optim.AdamW(), steps=7)
    new = f'model.{legacy.DECODER[old]}' if old in legacy.DECODER else f'objective.{old}'
    with pytest.raises(config.Error, match=f"^no field 'model.{old}'; it is {new} now.$"):
        config.override(settings, {f'model.{old}': 1})
    inside = {name for name, _ in config.flatten(settings).items()}
    assert any(f'{name}.'.startswith(f'{new}.') for name in inside)
