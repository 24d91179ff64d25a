"""gpt-oss (OpenAI 2025, arXiv:2508.10925): sinks of attention, experts with biases, every other layer with a window."""
from lm.convert import dense
from lm.convert.tables import Tensor
from lm.nn import ClampedSilu, Experts

ARCHITECTURE, MODEL_TYPE = 'GptOssForCausalLM', 'gpt_oss'
DEFAULTS = {'rope_theta': 150000.0, 'num_key_value_heads': 8, 'head_dim': 64, 'sliding_window': 128,
            'swiglu_alpha': 1.702, 'swiglu_limit': 7.0}
YARN = {'rope_type': 'yarn', 'factor': 32.0, 'truncate': False, 'original_max_position_embeddings': 4096}  # by default
MLP = f'{dense.LAYER}mlp.'
IN, OUT = f'{MLP}experts.gate_up_proj', f'{MLP}experts.down_proj'
TABLE = dense.table(**{
    'attention/sink': Tensor(f'{dense.LAYER}self_attn.sinks', 'N'),
    'experts/router': Tensor(f'{MLP}router.weight', 'E D'), 'experts/routes_bias': Tensor(f'{MLP}router.bias', 'E'),
    'experts/gate': Tensor(IN, 'E D F0/2'), 'experts/up': Tensor(IN, 'E D F1/2'),
    'experts/gate_bias': Tensor(f'{IN}_bias', 'E F0/2'), 'experts/up_bias': Tensor(f'{IN}_bias', 'E F1/2'),
    'experts/down': Tensor(OUT, 'E F D'), 'experts/down_bias': Tensor(f'{OUT}_bias', 'E D')})


def read(hf):
    experts = Experts(hf['num_local_experts'], hf['num_experts_per_tok'], hf['intermediate_size'],
                      ClampedSilu(hf['swiglu_alpha'], hf['swiglu_limit']), bias=True,
                      balance=hf.get('router_aux_loss_coef', 0.0))
    if not (hf.get('rope_parameters') or hf.get('rope_scaling')):
        hf = hf | {'rope_scaling': YARN}

    def layer(kind):
        attention = dense.attention(hf, sink=True, bias='all' if hf.get('attention_bias', True) else 'none',
                                    window=hf['sliding_window'] if kind == 'sliding_attention' else 0)
        return dense.layer(hf, attention, mlp=experts)
    types = hf.get('layer_types') or [('sliding_attention', 'full_attention')[i % 2]
                                      for i in range(hf['num_hidden_layers'])]
    return dense.decoder(hf, map(layer, types))


def write(model):
    layer = model.layers[0]
    return {**dense.described(model), 'hidden_act': 'silu', 'sliding_window': dense.window(model),
            'layer_types': dense.layer_types(model), 'attention_bias': layer.attention.bias == 'all',
            'num_local_experts': layer.mlp.count, 'num_experts_per_tok': layer.mlp.top_k,
            'router_aux_loss_coef': layer.mlp.balance, 'swiglu_limit': layer.mlp.activation.limit,
            'swiglu_alpha': layer.mlp.activation.steepness}
