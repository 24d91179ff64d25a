"""OLMo 2 (arXiv:2501.00656): norms behind the sublayers, and of all queries and all keys together."""
from lm.convert import dense
from lm.models import OutputNorm
from lm.nn import RMSNorm

ARCHITECTURE, MODEL_TYPE = 'Olmo2ForCausalLM', 'olmo2'
TABLE = dense.table(norms={'attention_post_norm': 'post_attention_layernorm',
                           'mlp_post_norm': 'post_feedforward_layernorm'})


def read(hf):
    attention = dense.attention(hf, bias='all' if hf.get('attention_bias') else 'none',
                                qk_norm=RMSNorm(hf['rms_norm_eps']), qk_norm_over='heads')
    return dense.decoder(hf, dense.layer(hf, attention, residual=OutputNorm()))


def write(model):
    return {**dense.described(model), 'attention_bias': model.layers[0].attention.bias == 'all'}
