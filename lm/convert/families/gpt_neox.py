"""GPT-NeoX and Pythia (Black et al. 2022, arXiv:2204.06745): both sublayers beside each other, partial Rope."""
from lm.convert import dense
from lm.convert.tables import Tensor
from lm.nn import MLP, LayerNorm

ARCHITECTURE, MODEL_TYPE = 'GPTNeoXForCausalLM', 'gpt_neox'
DEFAULTS = {'rotary_pct': 0.25, 'rotary_emb_base': 10000.0}
LAYER = 'gpt_neox.layers.{L}.'
PARTS = {'query': '0/3', 'key': '1/3', 'value': '2/3'}
NORMS = {'final_norm': 'gpt_neox.final_layer_norm', 'blocks/attention_norm': f'{LAYER}input_layernorm',
         'blocks/mlp_norm': f'{LAYER}post_attention_layernorm'}
DENSE = {'attention/out': ('attention.dense', 'D NH'), 'mlp/up': ('mlp.dense_h_to_4h', 'F D'),
         'mlp/down': ('mlp.dense_4h_to_h', 'D F')}
TABLE = {
    'tokens': Tensor('gpt_neox.embed_in.weight', 'V D'), 'output': Tensor('embed_out.weight', 'V D'),
    **{f'blocks/attention/{ours}': Tensor(f'{LAYER}attention.query_key_value.weight', f'{heads}{part}H D')
       for (ours, part), heads in zip(PARTS.items(), 'NKK', strict=True)},
    **{f'blocks/attention/{ours}_bias': Tensor(f'{LAYER}attention.query_key_value.bias', f'{heads}{part}H')
       for (ours, part), heads in zip(PARTS.items(), 'NKK', strict=True)},
    **{f'blocks/{ours}': Tensor(f'{LAYER}{theirs}.weight', axes) for ours, (theirs, axes) in DENSE.items()},
    **{f'blocks/{ours}_bias': Tensor(f'{LAYER}{theirs}.bias') for ours, (theirs, _) in DENSE.items()},
    **{f'{ours}_{kind}': Tensor(f'{theirs}.{ending}') for ours, theirs in NORMS.items()
       for kind, ending in (('scale', 'weight'), ('bias', 'bias'))}}
IGNORED = r'\.attention\.(masked_bias|bias|rotary_emb\.inv_freq)$'


def read(hf):
    hf = hf | {'partial_rotary_factor': hf.get('rotary_pct'), 'rope_theta': hf.get('rotary_emb_base')}
    attention = dense.attention(hf, position=dense.rope(hf, partial=True),
                                bias='all' if hf.get('attention_bias', True) else 'none')
    return dense.decoder(hf, dense.layer(
        hf | {'rms_norm_eps': hf['layer_norm_eps']}, attention, norm=LayerNorm(hf['layer_norm_eps']),
        mlp=MLP(hf['intermediate_size'], dense.activation(hf), bias=True),
        parallel=hf['use_parallel_residual']))


def write(model):
    layer, hf = model.layers[0], dense.described(model)
    parameters = dense.rope_parameters(layer.attention.position, partial=True)
    return {**hf, 'layer_norm_eps': hf.pop('rms_norm_eps'), 'rope_parameters': parameters,
            'use_parallel_residual': layer.parallel, 'attention_bias': layer.attention.bias == 'all',
            'rotary_pct': parameters['partial_rotary_factor']}
