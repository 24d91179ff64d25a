"""Mistral 7B (Jiang et al. 2023, arXiv:2310.06825): Llama with a window."""
from lm.convert import dense

ARCHITECTURE, MODEL_TYPE = 'MistralForCausalLM', 'mistral'
DEFAULTS = {'num_key_value_heads': 8, 'sliding_window': 4096}
TABLE = dense.table()


def read(hf):
    return dense.decoder(hf, dense.layer(hf, dense.attention(hf, window=hf['sliding_window'] or 0)))


def write(model):
    return {**dense.described(model), 'sliding_window': dense.window(model)}
