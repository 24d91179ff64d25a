"""Records of older versions, as `dump` wrote them, in the form of the present one.

Nothing is imported and nothing built: a record is JSON before and after.
"""
from __future__ import annotations

from functools import partial

from lm.config.annotations import Error, first_line

# Modules that types were in -> the package that exports those types now.
MODULES = {
    'lm.positions': 'lm.nn',
    'lm.models.experts': 'lm.nn',
    'lm.pipeline': 'lm.parallel',
    'lm.data.tokenizers': 'lm.tokenizers',
    'lm.data.sentencepieces': 'lm.tokenizers',
    'lm.data.huggingface': 'lm.tokenizers',
    'lm.data.datasets': 'lm.data',
    'lm.data.corpus': 'lm.data',
    'lm.data.files': 'lm.data',
    'lm.data.sources': 'lm.data',
    'lm.models.decoder': 'lm.models',
    'lm.optim.optimizers': 'lm.optim',
    'lm.optim.schedules': 'lm.optim',
    'lm.train.experiment': 'lm.train',
    'lm.train.objectives': 'lm.train',
    'lm.train.start': 'lm.train',
}
# Fields that a Decoder had -> where they are now, below it.
DECODER = {
    'heads': 'layer.attention.heads', 'kv_heads': 'layer.attention.kv_heads', 'head_dim': 'layer.attention.head_dim',
    'ff': 'layer.mlp.ff', 'activation': 'layer.mlp.activation', 'experts.top': 'layer.mlp.top_k',
    'experts.score': 'layer.mlp.router', 'experts.room': 'layer.mlp.capacity_factor', 'experts': 'layer.mlp',
    'position.local_base': 'pattern', 'position': 'layer.attention.position',
    'windows': 'layer.attention.window', 'norm': 'layer.norm',
    'norm_epsilon': 'layer.norm.epsilon', 'norm_place': 'layer.residual', 'bias': 'layer.attention.bias',
    'qk_norm': 'layer.attention.qk_norm', 'parallel': 'layer.parallel', 'tied': 'head.tied',
    'scaled_embedding': 'embedding.scaled', 'attention_softcap': 'layer.attention.softcap',
    'logit_softcap': 'head.softcap', 'dropout': 'layer.dropout', 'dtype': 'execution.dtype',
    'quantized': 'execution.precision', 'loss_parts': 'execution.vocab_chunks', 'remat': 'execution.remat',
    'unroll': 'execution.unroll', 'kernel': 'execution.kernel', 'pipeline': 'execution.pipeline',
}
# Fields that a train.Config had -> where they are now.
CONFIG = {
    'log_every': 'cadence.log', 'eval_every': 'cadence.eval', 'eval_batches': 'cadence.eval_batches',
    'save_every': 'cadence.save', 'keep': 'cadence.keep', 'spike': 'diagnosis.spike',
    'noise_scale': 'diagnosis.noise_scale', 'sample': 'objective.sample', 'baselines': 'objective.baselines',
    'model.z_loss': 'objective.z_loss', 'model.smoothing': 'objective.smoothing',
}
OBJECTIVE = ('z_loss', 'smoothing')  # fields that a Decoder had and the objective has now
PIPELINE = {'batches': 'microbatches', 'circuits': 'repeats'}
EXPERTS = {'top': 'top_k', 'score': 'router', 'room': 'capacity_factor'}
ACTIVATIONS = {'gelu': ('Gelu', {'exact': False}, False), 'relu': ('Relu', {}, False), 'relu2': ('Relu2', {}, False),
               'swiglu': ('Silu', {}, True), 'geglu': ('Gelu', {'exact': False}, True)}
NORMS = {'rms': ('RMSNorm', {}), 'layer': ('LayerNorm', {'bias': False}), 'layer_bias': ('LayerNorm', {'bias': True})}
DEFAULTS = {'heads': 6, 'kv_heads': 0, 'head_dim': 0, 'ff': 0, 'windows': {'value': [0]}, 'norm': 'rms',
            'norm_place': 'pre', 'norm_epsilon': 1e-5, 'activation': 'gelu', 'bias': 'none', 'qk_norm': False,
            'parallel': False, 'experts': None, 'tied': True, 'scaled_embedding': False, 'attention_softcap': 0.0,
            'logit_softcap': 0.0, 'dropout': 0.0, 'position': {
                'type': 'lm.nn:Rope', 'base': 10000.0, 'factor': 1.0, 'original': 0, 'low': 1.0, 'high': 4.0,
                'fraction': 1.0}}
RESIDUALS = {'pre': 'PreNorm', 'post': 'OutputNorm', 'both': 'SandwichNorm'}


def renamed(name):
    """Returns the present name of a type, 'module:QualName', that a record names."""
    module, colon, path = name.partition(':')
    name = f'{MODULES.get(module, module)}{colon}{path}'
    return {'lm.models:Base': 'lm.models:MupBase'}.get(name, name)


def upgraded(dumped):
    """Returns a dumped value in the present form; one that has it already is returned as it is.

    Raises `Error` for fields that no version wrote.
    """
    if isinstance(dumped, list):
        return [upgraded(item) for item in dumped]
    if not isinstance(dumped, dict):
        return dumped
    if isinstance(dumped.get('type'), str) and ':' in dumped['type']:
        dumped = {**dumped, 'type': renamed(dumped['type'])}
        try:
            dumped = UPGRADES.get(dumped['type'], dict)(dumped)
            dumped = {**dumped, **{name: value for name, value in ADDED.get(dumped['type'], {}).items()
                                   if name not in dumped}}
        except (LookupError, TypeError, AttributeError, ValueError) as fault:  # what is damaged can be wrong anywhere
            raise Error(f'{dumped["type"]} has fields that no version wrote ({type(fault).__name__}: '
                        f'{first_line(fault)}); restore the record from a copy.') from fault
    return {name: upgraded(item) for name, item in dumped.items()}


def overridden(dumped, changes):
    """Returns a dumped component with dumped values at dotted keys, as the version that wrote both had them."""
    for key, value in changes.items():
        name, _, rest = key.partition('.')
        if not isinstance(dumped, dict) or (rest and name not in dumped):
            raise Error(f'the record has no {key}, which a trial sets; restore it from a copy.')
        dumped = {**dumped, name: overridden(dumped[name], {rest: value}) if rest else value}
    return dumped


def _component(name, **fields):
    return {'type': f'lm.nn:{name}', **fields}


def _renamed(names, fields):
    return {names.get(name, name): value for name, value in fields.items()}


def _config(fields):
    """A Config with cadence, diagnosis and objective as loose fields, two of them of its model."""
    model = fields.get('model')
    old = {name: fields[name] for name in CONFIG if name in fields}
    if isinstance(model, dict) and renamed(model.get('type', '')) == 'lm.models:Decoder':
        old |= {f'model.{name}': model[name] for name in OBJECTIVE if name in model}
    groups = {}
    for name, value in old.items():
        group, field = CONFIG[name].split('.')
        groups.setdefault(group, {})[field] = value
    types = {'cadence': 'lm.train:Cadence', 'diagnosis': 'lm.train:Diagnosis', 'objective': 'lm.train:NextToken'}
    kept = {name: value for name, value in fields.items() if name not in CONFIG}
    return {**kept, **{group: {'type': types[group], **inside} for group, inside in groups.items()}}


def _decoder(fields):
    """A Decoder that had a field for every switch, as values of layers with all of their fields.

    All, so that a report sees no difference between such a run and one of the present version.
    """
    if not fields.keys() & {*DECODER, *OBJECTIVE}:
        return fields
    old = {**DEFAULTS, **fields}
    layers = [_layer(old, window) for window in old['windows']['value']]
    single = len(layers) == 1
    execution = {new.partition('.')[2]: fields[name] for name, new in DECODER.items()
                 if new.startswith('execution.') and name in fields}
    absolute = renamed(old['position']['type']) in ('lm.nn:Learned', 'lm.nn:Sinusoidal')
    kept = {name: value for name, value in fields.items() if name not in DECODER and name not in OBJECTIVE}
    return {**kept, 'layer': layers[0] if single else _layer(DEFAULTS, 0),
            'pattern': {'type': 'tuple', 'value': [] if single else layers},
            'embedding': {'type': 'lm.models:Embedding', 'position': old['position'] if absolute else None,
                          'scaled': old['scaled_embedding'], 'dropout': old['dropout']},
            'head': {'type': 'lm.models:Head', 'tied': old['tied'], 'softcap': old['logit_softcap']},
            'execution': {'type': 'lm.nn:Execution', **execution}}


def _layer(old, window):
    kind, norm_fields = NORMS[old['norm']]
    name, fields, gated = ACTIVATIONS[old['activation']]
    activation = _component(name, **fields)
    qk_norm = _component('RMSNorm', epsilon=old['norm_epsilon']) if old['qk_norm'] else _component('NoNorm')
    attention = _component(
        'Attention', heads=old['heads'], kv_heads=old['kv_heads'], head_dim=old['head_dim'], causal=True, window=window,
        position=_position(old['position'], window), scale=None, softcap=old['attention_softcap'], qk_norm=qk_norm,
        qk_norm_over='head', bias=old['bias'])
    if old['experts']:
        mlp = {**old['experts'], 'activation': activation, 'gated': gated}
    else:
        mlp = _component('MLP', ff=old['ff'], activation=activation, gated=gated,
                         bias=old['bias'] == 'all')
    return {'type': 'lm.models:Layer', 'attention': attention, 'mlp': mlp, 'cross': None,
            'norm': _component(kind, epsilon=old['norm_epsilon'], **norm_fields),
            'residual': {'type': f'lm.models:{RESIDUALS[old["norm_place"]]}'}, 'parallel': old['parallel'],
            'dropout': old['dropout']}


def _position(position, window):
    """A position in attention: none where it was added to embeddings; of Rope, local layers had a base of their own."""
    if renamed(position['type']) in ('lm.nn:Learned', 'lm.nn:Sinusoidal'):
        return _component('NoPE')
    fields = {name: value for name, value in position.items() if name != 'local_base'}
    if window and position.get('local_base'):
        return {**fields, 'base': position['local_base'], 'factor': 1.0}
    return fields


# Fields that components have since, with the values that say what was computed before: without them a report would
# see other variants.
ADDED = {
    'lm.models:Decoder': {'prompt': 'causal'}, 'lm.models:Embedding': {'norm': {'type': 'lm.nn:NoNorm'}},
    'lm.nn:Attention': {'sink': False}, 'lm.nn:Experts': {'bias': False}, 'lm.data:Corpus': {'words': False},
    'lm.nn:Yarn': {'fraction': 1.0},
}
UPGRADES = {
    'lm.train:Config': _config,
    'lm.models:Decoder': _decoder,
    'lm.nn:Experts': partial(_renamed, EXPERTS),
    'lm.nn:Rope': lambda fields: {name: value for name, value in fields.items() if name != 'local_base'},
    'lm.data:Files': lambda fields: {name: value for name, value in fields.items() if name != 'limit'},
    'lm.parallel:Pipeline': partial(_renamed, PIPELINE),
}
