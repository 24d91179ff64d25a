"""What families in the shape of Llama share: names of tensors, keys of config.json, positions, and their GGUF names.

hf: the dict of a config.json, checkpoints.Settings. A key that it lacks is as Llama has it, or as the family's DEFAULTS
say.
"""
import math

from lm import config
from lm.convert.tables import Tensor
from lm.models import Decoder, Embedding, Head, Layer
from lm.nn import MLP, Attention, Gelu, LongRope, Relu, Relu2, RMSNorm, Rope, Silu, Yarn

ACTIVATIONS = {'silu': Silu(), 'gelu_pytorch_tanh': Gelu(), 'gelu': Gelu(exact=True), 'relu': Relu(), 'relu2': Relu2(),
               'swish': Silu(), 'gelu_new': Gelu(), 'gelu_fast': Gelu()}
LAYER = 'model.layers.{L}.'


def table(*, norms=None, **more):
    """Returns the table of Llama: more={path in 'blocks': Tensor or None} adds to it; norms: those of each layer."""
    norms = norms or {'attention_norm': 'input_layernorm', 'mlp_norm': 'post_attention_layernorm'}
    projections = {'query': ('q_proj', 'NH'), 'key': ('k_proj', 'KH'), 'value': ('v_proj', 'KH')}
    blocks = {f'attention/{ours}': Tensor(f'{LAYER}self_attn.{theirs}.weight', f'{axes} D')
              for ours, (theirs, axes) in projections.items()}
    blocks |= {f'attention/{ours}_bias': Tensor(f'{LAYER}self_attn.{theirs}.bias', axes)
               for ours, (theirs, axes) in projections.items()}
    blocks |= {'attention/out': Tensor(f'{LAYER}self_attn.o_proj.weight', 'D NH'),
               'attention/out_bias': Tensor(f'{LAYER}self_attn.o_proj.bias')}
    for name, axes in (('gate', 'F D'), ('up', 'F D'), ('down', 'D F')):
        blocks |= {f'mlp/{name}': Tensor(f'{LAYER}mlp.{name}_proj.weight', axes),
                   f'mlp/{name}_bias': Tensor(f'{LAYER}mlp.{name}_proj.bias')}
    blocks |= {f'{ours}_scale': Tensor(f'{LAYER}{theirs}.weight') for ours, theirs in norms.items()}
    blocks |= {f'attention/{ours}_norm_scale': Tensor(f'{LAYER}self_attn.{theirs}_norm.weight')
               for ours, theirs in (('query', 'q'), ('key', 'k'))}
    return {'tokens': Tensor('model.embed_tokens.weight', 'V D'), 'output': Tensor('lm_head.weight', 'V D'),
            'final_norm_scale': Tensor('model.norm.weight'),
            **{f'blocks/{path}': tensor for path, tensor in (blocks | more).items()}}


def activation(hf, key='hidden_act'):
    """Returns the Activation that a config.json names."""
    name = hf[key]
    if name not in ACTIVATIONS:
        near = config.close(name, list(ACTIVATIONS)) or ACTIVATIONS
        raise config.Error(f'config.json has {key}={name}, which lm lacks; those that it has: {", ".join(near)}.')
    return ACTIVATIONS[name]


def activation_name(value):
    return next((name for name, known in ACTIVATIONS.items() if known == value), None)


def rope(hf, kind=None, partial=False):
    """Returns the position of a config.json of either spelling, for layers of a `kind` where it tells those apart.

    partial: whether the family lets a fraction of each head turn; transformers ignores that of others, or fails.
    """
    parameters = hf.get('rope_parameters') or {}
    parameters = {'rope_theta': hf.get('rope_theta', 10000.0), 'partial_rotary_factor': hf.get('partial_rotary_factor'),
                  **(hf.get('rope_scaling') or {}), **(parameters.get(kind, parameters) or {})}
    name, fraction = rope_type(parameters), parameters['partial_rotary_factor'] or 1.0
    if fraction != 1 and not partial and name != 'default':
        raise config.Error(f'config.json has partial_rotary_factor={fraction} with rope scaling {name!r}, which this '
                           'family lacks; set it to 1.0 if whole heads turn.')
    fields = {'base': float(parameters['rope_theta']), 'fraction': fraction if partial else 1.0}
    match name:
        case 'default':
            return Rope(**fields)
        case 'linear':
            return Rope(factor=float(parameters['factor']), **fields)
        case 'llama3':
            return Rope(factor=float(parameters['factor']), low=float(parameters['low_freq_factor']),
                        high=float(parameters['high_freq_factor']), original=_original(hf, parameters), **fields)
        case 'longrope' | 'su' | 'yarn' if partial and 'short_factor' in parameters:
            return _long_rope(hf, parameters)
        case 'yarn':
            factor = float(parameters.get('factor') or hf['max_position_embeddings'] / _original(hf, parameters))
            return Yarn(factor=factor, original=_original(hf, parameters), fast=parameters.get('beta_fast') or 32.0,
                        slow=parameters.get('beta_slow') or 1.0, whole=parameters.get('truncate', True),
                        growth=_growth(parameters, factor), **fields)
        case other:
            raise config.Error(f'config.json has rope scaling {other!r}, which lm lacks; those that it has: default, '
                               'linear, llama3, yarn, and of Phi-3 longrope.')


def rope_type(parameters):
    """Returns the kind of scaling of rope_parameters."""
    return parameters.get('rope_type', parameters.get('type', 'default'))


def _original(hf, parameters):
    """Returns the context length of pre-training, where a scaling needs it; one beside rope_parameters counts first."""
    return (hf.get('original_max_position_embeddings') or parameters.get('original_max_position_embeddings')
            or hf['max_position_embeddings'])


def _long_rope(hf, parameters):
    original, growth = _original(hf, parameters), parameters.get('attention_factor')
    if not growth:
        factor = parameters.get('factor') or hf['max_position_embeddings'] / original
        growth = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRope(tuple(map(float, parameters['short_factor'])), tuple(map(float, parameters['long_factor'])),
                    float(parameters['rope_theta']), original, float(growth))


def _growth(parameters, factor):
    """Returns Yarn.growth of rope_parameters: a factor of their own, or a ratio of two."""
    if parameters.get('attention_factor'):
        return float(parameters['attention_factor'])
    scales = [parameters.get(key) for key in ('mscale', 'mscale_all_dim')]
    if not all(scales):
        return None
    above, below = (yarn_scale(factor, scale) for scale in scales)
    return above / below


def yarn_scale(factor, times):
    """Returns 0.1 times ln(factor) + 1, Yarn's growth for `times` 1."""
    return 0.1 * times * math.log(factor) + 1 if factor > 1 else 1.0


def rope_parameters(position, partial=False):
    """Returns the rope_parameters of a config.json for a Rope, Yarn or LongRope, and for NoPE those of any.

    partial: with the fraction of a head that turns.
    """
    if isinstance(position, Yarn):
        return {'rope_type': 'yarn', 'rope_theta': position.base, 'factor': position.factor,
                'original_max_position_embeddings': position.original, 'beta_fast': position.fast,
                'beta_slow': position.slow, 'truncate': position.whole,
                **({'attention_factor': position.growth} if position.growth else {}),
                **({'partial_rotary_factor': position.fraction} if partial else {})}
    if isinstance(position, LongRope):
        return {'rope_type': 'longrope', 'rope_theta': position.base, 'short_factor': list(position.short),
                'long_factor': list(position.long), 'original_max_position_embeddings': position.original,
                'attention_factor': position.growth}
    if not isinstance(position, Rope):
        position = Rope()
    parameters = {'rope_type': 'default', 'rope_theta': position.base}
    if partial:
        parameters['partial_rotary_factor'] = position.fraction
    if position.factor == 1:
        return parameters
    if not position.original:
        return {**parameters, 'rope_type': 'linear', 'factor': position.factor}
    return {**parameters, 'rope_type': 'llama3', 'factor': position.factor, 'low_freq_factor': position.low,
            'high_freq_factor': position.high, 'original_max_position_embeddings': position.original}


def attention(hf, **fields):
    """Returns the Attention of a config.json, with Rope unless `fields` say otherwise.

    Where tokens see both sides, a window is as long on each of them as it is otherwise with the token itself.
    """
    heads, causal = hf['num_attention_heads'], hf.get('is_causal', True)
    size = hf.get('head_dim') or hf['hidden_size'] // heads
    if fields.get('window') and not causal:
        fields['window'] += 1
    return Attention(**{'heads': heads, 'kv_heads': hf.get('num_key_value_heads') or heads, 'head_dim': size,
                        'causal': causal, **fields, 'position': fields.get('position') or rope(hf)})


def layer(hf, attention, **fields):
    """Returns the Layer of a config.json: a gated MLP and RMSNorm before each sublayer unless `fields` say otherwise.
    """
    mlp = MLP(hf['intermediate_size'], activation(hf), gated=True, bias=hf.get('mlp_bias', False))
    return Layer(**{'attention': attention, 'mlp': mlp, 'norm': RMSNorm(hf['rms_norm_eps']), **fields})


def decoder(hf, layers, **fields):
    """Returns the Decoder of a config.json: `layers` one Layer, or as many as it is deep, of which a period is kept."""
    layers = [layers] if isinstance(layers, Layer) else list(layers)
    period = next(n for n in range(1, len(layers) + 1) if all(x == layers[i % n] for i, x in enumerate(layers)))
    kind = {'layer': layers[0]} if period == 1 else {'pattern': tuple(layers[:period])}
    return Decoder(**{'vocab': hf['vocab_size'], 'depth': hf['num_hidden_layers'], 'width': hf['hidden_size'],
                      'head': Head(tied=hf.get('tie_word_embeddings', False)), 'embedding': Embedding(), **kind,
                      **fields})


def described(model):
    """Returns the keys of a config.json that all these families have, of a Decoder whose layers are all as the first.
    """
    layer = model.layers[0]
    attention, mlp = layer.attention, layer.mlp
    return {
        'vocab_size': model.vocab, 'num_hidden_layers': model.depth, 'hidden_size': model.width,
        'num_attention_heads': attention.heads, 'num_key_value_heads': attention.num_kv_heads,
        'head_dim': attention.head_size(model.width),
        'intermediate_size': mlp.hidden(model.width) if isinstance(mlp, MLP) else mlp.ff,
        'hidden_act': activation_name(mlp.activation), 'rms_norm_eps': getattr(layer.norm, 'epsilon', None),
        'rope_parameters': rope_parameters(attention.position), 'tie_word_embeddings': model.head.tied,
        'attention_dropout': 0.0, 'use_cache': True, **({} if attention.causal else {'is_causal': False})}


def kinds(model, test):
    """Returns [bool] of the layers of a Decoder, by test(layer)."""
    return [bool(test(model.stack.layer(number))) for number in range(model.depth)]


def layer_types(model):
    """Returns the layer_types of a config.json: which layers have a window."""
    return ['sliding_attention' if windowed else 'full_attention'
            for windowed in kinds(model, lambda layer: layer.attention.window)]


def window(model):
    """Returns the window of the layers that have one as a config.json has it, None where none has."""
    longest = max(model.layers, key=lambda layer: layer.attention.window).attention
    return longest.window - (not longest.causal) if longest.window else None
