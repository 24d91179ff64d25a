"""Gemma 2 (arXiv:2408.00118): norms on both sides, every other layer with a window, soft caps of scores and logits."""
from lm.convert import dense, dialects
from lm.models import Embedding, Head, SandwichNorm

ARCHITECTURE, MODEL_TYPE = 'Gemma2ForCausalLM', 'gemma2'
DEFAULTS = {'num_key_value_heads': 4, 'head_dim': 256, 'hidden_activation': 'gelu_pytorch_tanh', 'sliding_window': 4096,
            'query_pre_attn_scalar': 256, 'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0}
FIXED = {'use_bidirectional_attention': False}  # some kernels of transformers take it for Gemma 2, others do not
NORMS = {'attention_norm': 'input_layernorm', 'attention_post_norm': 'post_attention_layernorm',
         'mlp_norm': 'pre_feedforward_layernorm', 'mlp_post_norm': 'post_feedforward_layernorm'}


def plus_one(table):
    """Returns a table whose norms are stored as what they differ from 1 by."""
    return {path: tensor._replace(plus=1.0) if path.endswith('_scale') else tensor for path, tensor in table.items()}


TABLE = plus_one(dense.table(norms=NORMS))


def complete(hf):
    """Returns what GGUF does not say of Gemma 2 and 3: the largest of both scale scores by the width."""
    largest = hf['num_hidden_layers'] in (46, 62)
    size = hf['hidden_size'] // hf['num_attention_heads'] if largest else hf['head_dim']
    return {'hidden_activation': 'gelu_pytorch_tanh', 'query_pre_attn_scalar': size}


GGUF = dialects.Dialect(
    'gemma2', tensors=dialects.TENSORS | {
        'post_attention_norm': f'{dense.LAYER}post_attention_layernorm',
        'ffn_norm': f'{dense.LAYER}pre_feedforward_layernorm',
        'post_ffw_norm': f'{dense.LAYER}post_feedforward_layernorm'},
    arrange={r'norm\.weight$': lambda array, hf: array - 1}, complete=complete)


def read(hf):
    def layer(kind):
        attention = dense.attention(
            hf, window=hf['sliding_window'] if kind == 'sliding_attention' else 0,
            scale=hf['query_pre_attn_scalar'] ** -0.5, softcap=hf['attn_logit_softcapping'] or 0.0)
        return dense.layer(hf | {'hidden_act': hf['hidden_activation']}, attention, residual=SandwichNorm())
    types = hf.get('layer_types') or [('sliding_attention', 'full_attention')[i % 2]
                                      for i in range(hf['num_hidden_layers'])]
    head = Head(hf.get('tie_word_embeddings', True), hf['final_logit_softcapping'] or 0.0)
    return dense.decoder(hf, map(layer, types), head=head, embedding=Embedding(scaled=True))


def write(model):
    attention = model.layers[0].attention
    scale = attention.scale or attention.head_size(model.width) ** -0.5
    hf = dense.described(model)
    return {**hf, 'hidden_activation': hf.pop('hidden_act'), 'query_pre_attn_scalar': round(scale ** -2),
            'attn_logit_softcapping': attention.softcap or None, 'final_logit_softcapping': model.head.softcap or None,
            'sliding_window': dense.window(model), 'layer_types': dense.layer_types(model)}
