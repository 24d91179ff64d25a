"""Gemma 3, text alone (arXiv:2503.19786): norms of queries and keys, five layers with a window to one without.

EmbeddingGemma (arXiv:2509.20354) is one whose tokens see both sides, in windows half as long on each.
"""
from lm.convert import dense, dialects
from lm.convert.families import gemma2
from lm.models import Embedding, Head, SandwichNorm
from lm.nn import RMSNorm

ARCHITECTURE, MODEL_TYPE = 'Gemma3ForCausalLM', 'gemma3_text'
DEFAULTS = {'rope_theta': 1e6, 'rope_local_base_freq': 1e4, 'tie_word_embeddings': True, 'num_key_value_heads': 4,
            'head_dim': 256, 'hidden_activation': 'gelu_pytorch_tanh', 'query_pre_attn_scalar': 256,
            'sliding_window': 4096, 'sliding_window_pattern': 6}
FIXED = {'is_causal': True}  # use_bidirectional_attention is read
TABLE = gemma2.TABLE
GGUF = gemma2.GGUF._replace(architecture='gemma3', keys=dialects.KEYS | {'rope.freq_base_swa': 'rope_local_base_freq'},
                            complete=lambda hf: {'rope_local_base_freq': 10000.0, 'sliding_window_pattern': 6,
                                                 **gemma2.complete(hf)})


def read(hf):
    if hf.get('use_bidirectional_attention'):
        hf = hf | {'is_causal': False, 'sliding_window': hf['sliding_window'] // 2}

    def layer(kind):
        local = kind == 'sliding_attention'
        older = {'rope_theta': hf['rope_local_base_freq'], 'rope_scaling': None} if 'rope_local_base_freq' in hf else {}
        attention = dense.attention(
            hf, position=dense.rope(hf | older if local else hf, kind), window=hf['sliding_window'] if local else 0,
            scale=hf['query_pre_attn_scalar'] ** -0.5, qk_norm=RMSNorm(hf['rms_norm_eps']))
        return dense.layer(hf | {'hidden_act': hf['hidden_activation']}, attention, residual=SandwichNorm())
    types = hf.get('layer_types') or [
        'full_attention' if (i + 1) % hf['sliding_window_pattern'] == 0 else 'sliding_attention'
        for i in range(hf['num_hidden_layers'])]
    head = Head(hf.get('tie_word_embeddings', True), hf.get('final_logit_softcapping') or 0.0)
    return dense.decoder(hf, map(layer, types), head=head, embedding=Embedding(scaled=True))


def write(model):
    hf, types = gemma2.write(model), dense.layer_types(model)
    positions = {kind: model.stack.layer(types.index(kind)).attention.position for kind in dict.fromkeys(types)}
    hf['rope_parameters'] = {kind: dense.rope_parameters(position) for kind, position in positions.items()}
    if hf.pop('is_causal', True):
        return hf
    return {**hf, 'use_bidirectional_attention': True, 'sliding_window': 2 * (hf['sliding_window'] or 1)}
