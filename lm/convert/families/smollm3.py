"""SmolLM 3 (Hugging Face 2025): Llama with every fourth layer without positions."""
from dataclasses import replace

from lm.convert import dense
from lm.nn import NoPE

ARCHITECTURE, MODEL_TYPE = 'SmolLM3ForCausalLM', 'smollm3'
TABLE = dense.table()
DEFAULTS = {'rope_theta': 2e6, 'tie_word_embeddings': True, 'num_key_value_heads': 4, 'no_rope_layer_interval': 4}


def read(hf):
    depth = hf['num_hidden_layers']
    turns = hf.get('no_rope_layers') or [(i + 1) % hf['no_rope_layer_interval'] for i in range(depth)]
    slides = hf.get('use_sliding_window') and hf.get('sliding_window')  # then the layers without positions do
    types = hf.get('layer_types') or ['sliding_attention' if slides and not turning else 'full_attention'
                                      for turning in turns]

    def layer(number):
        attention = dense.attention(hf, bias='all' if hf.get('attention_bias') else 'none',
                                    window=hf['sliding_window'] if types[number] == 'sliding_attention' else 0)
        return dense.layer(hf, attention if turns[number] else replace(attention, position=NoPE()))
    return dense.decoder(hf, map(layer, range(depth)))


def write(model):
    layer = model.layers[0]
    turning = [other for other in model.layers if not isinstance(other.attention.position, NoPE)] or [layer]
    return {**dense.described(model), 'rope_parameters': dense.rope_parameters(turning[0].attention.position),
            'no_rope_layers': [int(turns) for turns in dense.kinds(
                model, lambda layer: not isinstance(layer.attention.position, NoPE))],
            'layer_types': dense.layer_types(model), 'use_sliding_window': dense.window(model) is not None,
            'sliding_window': dense.window(model), 'mlp_bias': layer.mlp.bias,
            'attention_bias': layer.attention.bias == 'all'}
