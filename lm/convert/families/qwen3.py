"""Qwen 3 (arXiv:2505.09388): Llama with a norm of queries and keys in each head."""
from lm.convert import dense, dialects
from lm.convert.families import qwen2
from lm.nn import RMSNorm

ARCHITECTURE, MODEL_TYPE = 'Qwen3ForCausalLM', 'qwen3'
DEFAULTS = {**qwen2.DEFAULTS, 'head_dim': 128}
TABLE = dense.table()
GGUF = dialects.Dialect('qwen3')


def read(hf):
    return qwen2.read(hf, bias='all' if hf.get('attention_bias') else 'none', qk_norm=RMSNorm(hf['rms_norm_eps']))


def write(model):
    return {**qwen2.write(model), 'attention_bias': model.layers[0].attention.bias == 'all'}
