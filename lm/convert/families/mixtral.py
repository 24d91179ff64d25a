"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with experts, one tensor each on disk."""
from lm.convert import dense
from lm.convert.tables import Tensor
from lm.nn import Experts

ARCHITECTURE, MODEL_TYPE = 'MixtralForCausalLM', 'mixtral'
DEFAULTS = {'rope_theta': 1e6, 'num_key_value_heads': 8}
MIX = f'{dense.LAYER}block_sparse_moe.'
TABLE = dense.table(**{
    'experts/router': Tensor(f'{MIX}gate.weight', 'E D'),
    'experts/gate': Tensor(f'{MIX}experts.{{E}}.w1.weight', 'F D'),
    'experts/up': Tensor(f'{MIX}experts.{{E}}.w3.weight', 'F D'),
    'experts/down': Tensor(f'{MIX}experts.{{E}}.w2.weight', 'D F')})


def read(hf):
    experts = Experts(hf['num_local_experts'], hf['num_experts_per_tok'], hf['intermediate_size'],
                      dense.activation(hf), balance=hf.get('router_aux_loss_coef', 0.0))
    attention = dense.attention(hf, window=hf.get('sliding_window') or 0)
    return dense.decoder(hf, dense.layer(hf, attention, mlp=experts))


def write(model):
    mlp = model.layers[0].mlp
    return {**dense.described(model), 'sliding_window': dense.window(model), 'num_local_experts': mlp.count,
            'num_experts_per_tok': mlp.top_k, 'router_aux_loss_coef': mlp.balance}
