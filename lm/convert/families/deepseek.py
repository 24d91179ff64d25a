"""DeepSeek-V3 and Kimi K2 (arXiv:2412.19437, arXiv:2507.20534): latent attention, dense layers before those of experts.
"""
import math

from lm.convert import dense
from lm.convert.tables import Tensor
from lm.nn import Experts, LatentAttention, LongRope, Yarn

ARCHITECTURE, MODEL_TYPE = 'DeepseekV3ForCausalLM', 'deepseek_v3'
ATTENTION, MLP = f'{dense.LAYER}self_attn.', f'{dense.LAYER}mlp.'
LATENT = f'{ATTENTION}kv_a_proj_with_mqa'
FIXED = {'rope_interleave': True, 'topk_method': 'noaux_tc', 'scoring_func': 'sigmoid', 'moe_layer_freq': 1}
DEFAULTS = {'n_group': 8, 'topk_group': 4, 'n_shared_experts': 1, 'q_lora_rank': 1536}
BIAS_RATE = 0.001  # of DeepSeek-V3's training; that there is one gives the bias of the router


def TABLE(model):
    """Returns the table of a model: experts that all tokens share have names of their own."""
    latent, layers = model.layers[0].attention, model.stack.stacks(model.width)
    turning = latent.rotary
    query = 'q_b_proj' if latent.query_rank else 'q_proj'
    shared = {f'{name}/mlp/{ours}': Tensor(f'{MLP}shared_experts.{ours}_proj.weight', axes)
              for name, (number, *_) in layers.items() if isinstance(model.stack.layer(number).mlp, Experts)
              for ours, axes in (('gate', 'F D'), ('up', 'F D'), ('down', 'D F'))}
    return dense.table(**{
        'attention/query': Tensor(f'{ATTENTION}{query}.weight', 'NH D', pairs=turning),
        'attention/query_latent': Tensor(f'{ATTENTION}q_a_proj.weight', 'Q D'),
        'attention/query_latent_bias': Tensor(f'{ATTENTION}q_a_proj.bias', 'Q'),
        'attention/query_norm_scale': Tensor(f'{ATTENTION}q_a_layernorm.weight'),
        'attention/latent': Tensor(f'{LATENT}.weight', '(R)+P D'),
        'attention/latent_bias': Tensor(f'{LATENT}.bias', '(R)+P'),
        'attention/key': Tensor(f'{LATENT}.weight', 'R+(P) D', pairs=turning),
        'attention/key_bias': Tensor(f'{LATENT}.bias', 'R+(P)', pairs=turning),
        'attention/key_value': Tensor(f'{ATTENTION}kv_b_proj.weight', 'NH D'),
        'attention/key_value_norm_scale': Tensor(f'{ATTENTION}kv_a_layernorm.weight'),
        'experts/router': Tensor(f'{MLP}gate.weight', 'E D'),
        'experts/router_bias': Tensor(f'{MLP}gate.e_score_correction_bias', 'E'),
        **{f'experts/{name}': Tensor(f'{MLP}experts.{{E}}.{name}_proj.weight', axes)
           for name, axes in (('gate', 'F D'), ('up', 'F D'), ('down', 'D F'))}}) | shared


def LEFT_OUT(hf):
    """Returns (regex of tensors that are not read, what they are): the layers behind the last, of 671B one."""
    layers = '|'.join(map(str, range(hf['num_hidden_layers'])))
    return rf'^(?:model\.)?layers\.(?!(?:{layers})\.)\d+\.', 'the module that predicts the token after the next'


def read(hf):
    activation, rotary = dense.activation(hf), hf['qk_rope_head_dim']
    size = hf['qk_nope_head_dim'] + rotary
    attention = LatentAttention(
        hf['num_attention_heads'], head_dim=size, causal=hf.get('is_causal', True), position=dense.rope(hf),
        bias='all' if hf.get('attention_bias') else 'none', scale=_scale(hf, size), rank=hf['kv_lora_rank'],
        query_rank=hf.get('q_lora_rank') or 0, rotary=rotary, value_dim=hf['v_head_dim'])
    experts = Experts(
        hf['n_routed_experts'], hf['num_experts_per_tok'], hf['moe_intermediate_size'], activation,
        shared=hf.get('n_shared_experts') or 0, router='sigmoid', groups=hf.get('n_group') or 1,
        top_groups=hf.get('topk_group') or 1, normalised=hf['norm_topk_prob'], scale=float(hf['routed_scaling_factor']),
        balance=0.0, bias_rate=BIAS_RATE)
    layers = {'mlp': dense.layer(hf, attention), 'experts': dense.layer(hf, attention, mlp=experts)}
    return dense.decoder(hf, [layers['mlp' if number < hf['first_k_dense_replace'] else 'experts']
                              for number in range(hf['num_hidden_layers'])])


def _scale(hf, size):
    """Returns the scale of the scores: a scaling's factor for all dimensions of a head counts in queries and keys."""
    scaling = (hf.get('rope_parameters') or {}) | (hf.get('rope_scaling') or {})
    times = scaling.get('mscale_all_dim') if dense.rope_type(scaling) != 'default' else 0
    return size ** -0.5 * dense.yarn_scale(float(scaling['factor']), times) ** 2 if times else size ** -0.5


def write(model):
    mlps = [model.stack.layer(number).mlp for number in range(model.depth)]
    plain, mixed = ([mlp for mlp in mlps if isinstance(mlp, Experts) == kind] for kind in (False, True))
    attention, experts = model.layers[0].attention, (mixed or plain)[0]
    size, position = attention.head_size(model.width), attention.position
    parameters = dense.rope_parameters(position)
    if not isinstance(position, LongRope) and attention.scale and position.factor > 1:
        own = (attention.scale * size ** 0.5) ** 0.5
        scales = {'mscale_all_dim': own}
        if isinstance(position, Yarn) and position.growth:
            scales['mscale'] = own * position.growth
        parameters |= {name: round((scale - 1) / (0.1 * math.log(position.factor)), 9)
                       for name, scale in scales.items()}
    return FIXED | {
        **dense.described(model), 'rope_parameters': parameters, 'num_key_value_heads': attention.heads,
        'hidden_act': dense.activation_name(experts.activation), 'head_dim': attention.rotary,
        'first_k_dense_replace': len(plain),
        'intermediate_size': plain[0].hidden(model.width) if plain else experts.ff,
        'moe_intermediate_size': experts.ff, 'n_routed_experts': experts.count, 'n_shared_experts': experts.shared,
        'num_experts_per_tok': experts.top_k, 'n_group': experts.groups, 'topk_group': experts.top_groups,
        'norm_topk_prob': experts.normalised, 'routed_scaling_factor': experts.scale,
        'kv_lora_rank': attention.rank, 'q_lora_rank': attention.query_rank or None,
        'qk_rope_head_dim': attention.rotary, 'qk_nope_head_dim': size - attention.rotary,
        'v_head_dim': attention.value_dim or size, 'attention_bias': attention.bias == 'all',
        'num_nextn_predict_layers': 0}
