"""Qwen 2 and 2.5 (arXiv:2407.10671): Llama with biases of queries, keys and values."""
from lm.convert import dense, dialects

ARCHITECTURE, MODEL_TYPE = 'Qwen2ForCausalLM', 'qwen2'
DEFAULTS = {'num_key_value_heads': 32, 'sliding_window': 4096, 'max_window_layers': 28}
TABLE = dense.table()
GGUF = dialects.Dialect('qwen2')


def read(hf, **fields):
    """Returns the Decoder; fields: of its Attention."""
    def window(number):
        if not hf.get('use_sliding_window'):
            return 0
        types = hf.get('layer_types')
        slides = types[number] == 'sliding_attention' if types else number >= hf['max_window_layers']
        return hf['sliding_window'] if slides else 0
    fields = {'bias': 'qkv', **fields}
    return dense.decoder(hf, [dense.layer(hf, dense.attention(hf, window=window(number), **fields))
                              for number in range(hf['num_hidden_layers'])])


def write(model):
    window = dense.window(model)
    return {**dense.described(model), 'use_sliding_window': window is not None, 'sliding_window': window,
            'layer_types': dense.layer_types(model)}
