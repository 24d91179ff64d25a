"""Qwen 3 with experts (arXiv:2505.09388), in every layer or in some."""
from dataclasses import replace

from lm.convert import dense
from lm.convert.families import qwen3
from lm.convert.tables import Tensor
from lm.nn import Experts

ARCHITECTURE, MODEL_TYPE = 'Qwen3MoeForCausalLM', 'qwen3_moe'
DEFAULTS = {'num_key_value_heads': 4, 'sliding_window': 4096}
EXPERT = f'{dense.LAYER}mlp.experts.{{E}}.'
TABLE = dense.table(**{
    'experts/router': Tensor(f'{dense.LAYER}mlp.gate.weight', 'E D'),
    'experts/gate': Tensor(f'{EXPERT}gate_proj.weight', 'F D'), 'experts/up': Tensor(f'{EXPERT}up_proj.weight', 'F D'),
    'experts/down': Tensor(f'{EXPERT}down_proj.weight', 'D F')})


def read(hf):
    count = hf.get('num_local_experts') or hf['num_experts']  # transformers 5 writes the first
    experts = Experts(count, hf['num_experts_per_tok'], hf['moe_intermediate_size'], dense.activation(hf),
                      normalised=hf['norm_topk_prob'], balance=hf.get('router_aux_loss_coef', 0.0))
    plain, step = hf.get('mlp_only_layers') or (), hf.get('decoder_sparse_step', 1)
    model = qwen3.read(hf | {'layer_types': ['sliding_attention'] * hf['num_hidden_layers']})  # a window is of all
    layers = [model.stack.layer(number) for number in range(model.depth)]
    return dense.decoder(hf, [layer if number in plain or (number + 1) % step else replace(layer, mlp=experts)
                              for number, layer in enumerate(layers)])


def write(model):
    mlps = [model.stack.layer(number).mlp for number in range(model.depth)]
    plain = [number for number, mlp in enumerate(mlps) if not isinstance(mlp, Experts)]
    mlp = next((mlp for mlp in mlps if isinstance(mlp, Experts)), None)
    return {**qwen3.write(model), 'num_experts': mlp.count, 'num_experts_per_tok': mlp.top_k,
            'intermediate_size': mlps[plain[0]].hidden(model.width) if plain else mlp.ff,
            'moe_intermediate_size': mlp.ff, 'norm_topk_prob': mlp.normalised, 'decoder_sparse_step': 1,
            'mlp_only_layers': plain, 'router_aux_loss_coef': mlp.balance}
