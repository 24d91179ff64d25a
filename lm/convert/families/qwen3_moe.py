"""Qwen 3 with experts (arXiv:2505.09388), in every layer."""
from dataclasses import replace

from lm import config
from lm.convert import dense
from lm.convert.families import qwen3
from lm.convert.tables import Tensor
from lm.nn import Experts

ARCHITECTURE, MODEL_TYPE = 'Qwen3MoeForCausalLM', 'qwen3_moe'
EXPERT = f'{dense.LAYER}mlp.experts.{{E}}.'
TABLE = dense.table(**{
    'experts/router': Tensor(f'{dense.LAYER}mlp.gate.weight', 'E D'),
    'experts/gate': Tensor(f'{EXPERT}gate_proj.weight', 'F D'), 'experts/up': Tensor(f'{EXPERT}up_proj.weight', 'F D'),
    'experts/down': Tensor(f'{EXPERT}down_proj.weight', 'D F')})


def read(hf):
    if hf.get('mlp_only_layers') or hf.get('decoder_sparse_step', 1) != 1:
        raise config.Error('config.json has layers with and without experts (mlp_only_layers, decoder_sparse_step), '
                           'which one stack of layers does not hold; convert a model with experts in all.')
    count = hf.get('num_local_experts') or hf['num_experts']  # transformers 5 writes the first
    experts = Experts(count, hf['num_experts_per_tok'], hf['moe_intermediate_size'], dense.activation(hf),
                      normalised=hf['norm_topk_prob'], balance=hf.get('router_aux_loss_coef', 0.0))
    model = qwen3.read(hf)
    layers = [replace(model.stack.layer(number), mlp=experts) for number in range(model.depth)]
    return dense.decoder(hf, layers)


def write(model):
    mlp = model.layers[0].mlp
    return {**qwen3.write(model), 'num_experts': mlp.count, 'num_experts_per_tok': mlp.top_k,
            'moe_intermediate_size': mlp.ff, 'norm_topk_prob': mlp.normalised, 'decoder_sparse_step': 1,
            'mlp_only_layers': [], 'router_aux_loss_coef': mlp.balance}
