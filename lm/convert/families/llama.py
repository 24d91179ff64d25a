"""Llama 1 to 3 (Touvron et al. 2023, arXiv:2302.13971), and what has its shape: SmolLM 2, TinyLlama, Yi."""
from lm.convert import dense, dialects

ARCHITECTURE, MODEL_TYPE = 'LlamaForCausalLM', 'llama'
TABLE = dense.table()
IGNORED = r'rotary_emb\.inv_freq$'
GGUF = dialects.Dialect('llama', arrange=dialects.ROTARY)


def read(hf):
    bias = 'all' if hf.get('attention_bias') else 'none'
    return dense.decoder(hf, dense.layer(hf, dense.attention(hf, bias=bias)))


def write(model):
    layer = model.layers[0]
    return {**dense.described(model), 'attention_bias': layer.attention.bias == 'all', 'mlp_bias': layer.mlp.bias}
