"""Phi-3 and Phi-4-mini (arXiv:2404.14219): Llama with fused projections, perhaps of partial Rope or of LongRope."""
from lm.convert import dense
from lm.convert.tables import Tensor
from lm.nn import LongRope

ARCHITECTURE, MODEL_TYPE = 'Phi3ForCausalLM', 'phi3'
DEFAULTS = {'original_max_position_embeddings': 4096}
QKV, FUSED = f'{dense.LAYER}self_attn.qkv_proj.weight', f'{dense.LAYER}mlp.gate_up_proj.weight'
TABLE = dense.table(**{
    'attention/query': Tensor(QKV, '(NH)+KH+KH D'), 'attention/key': Tensor(QKV, 'NH+(KH)+KH D'),
    'attention/value': Tensor(QKV, 'NH+KH+(KH) D'),
    'mlp/gate': Tensor(FUSED, '(F)+F D'), 'mlp/up': Tensor(FUSED, 'F+(F) D')})


def read(hf):
    attention = dense.attention(hf, position=dense.rope(hf, partial=True), window=hf.get('sliding_window') or 0)
    return dense.decoder(hf, dense.layer(hf, attention))


def write(model):
    attention = model.layers[0].attention
    parameters = dense.rope_parameters(attention.position, partial=True)
    if isinstance(attention.position, LongRope):
        turning = 2 * len(attention.position.short) / attention.head_size(model.width)
        parameters['partial_rotary_factor'] = turning
    return {**dense.described(model), 'rope_parameters': parameters, 'sliding_window': dense.window(model),
            'partial_rotary_factor': parameters['partial_rotary_factor'],
            'original_max_position_embeddings': parameters.get('original_max_position_embeddings', 4096)}
