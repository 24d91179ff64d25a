"""Phi-3 and Phi-4-mini (arXiv:2404.14219) without LongRoPE: Llama with fused projections, perhaps of partial Rope."""
from lm.convert import dense
from lm.convert.tables import Tensor

ARCHITECTURE, MODEL_TYPE = 'Phi3ForCausalLM', 'phi3'
QKV, FUSED = f'{dense.LAYER}self_attn.qkv_proj.weight', f'{dense.LAYER}mlp.gate_up_proj.weight'
TABLE = dense.table(**{
    'attention/query': Tensor(QKV, '(NH)+KH+KH D'), 'attention/key': Tensor(QKV, 'NH+(KH)+KH D'),
    'attention/value': Tensor(QKV, 'NH+KH+(KH) D'),
    'mlp/gate': Tensor(FUSED, '(F)+F D'), 'mlp/up': Tensor(FUSED, 'F+(F) D')})


def read(hf):
    return dense.decoder(hf, dense.layer(hf, dense.attention(hf, window=hf.get('sliding_window') or 0)))


def write(model):
    parameters = dense.rope_parameters(model.layers[0].attention.position, partial=True)
    return {**dense.described(model), 'rope_parameters': parameters, 'sliding_window': dense.window(model),
            'partial_rotary_factor': parameters['partial_rotary_factor'],
            'original_max_position_embeddings': parameters.get('original_max_position_embeddings', 4096)}
