"""Runs in the environment of the heavy peers: models of transformers made, run and loaded. `peers.py` calls it.

    python peers_models.py make OUT          writes OUT/<family>/ (save_pretrained) and OUT/<family>.npz for each family
    python peers_models.py run DIRECTORY...  prints, as JSON, how exported directories load; writes DIRECTORY/ran.npz
    python peers_models.py mxfp4 OUT         writes OUT/mxfp4.npz: blocks, scales and values of MXFP4
    python peers_models.py headers OUT       writes OUT/<name>.json: config, names and shapes of models of full size
"""
import json
import os
import sys

os.environ |= {'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_VERBOSITY': 'error', 'HF_HUB_DISABLE_PROGRESS_BARS': '1'}

import numpy as np
import torch
import transformers as T
from transformers import core_model_loading
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

VOCAB, ROWS, LENGTH = 100, 2, 24
SIZES = {'vocab_size': VOCAB, 'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 4,
         'num_attention_heads': 4, 'num_key_value_heads': 2, 'max_position_embeddings': 64, 'bos_token_id': 1,
         'eos_token_id': 2, 'pad_token_id': 0}
UNTIED, TIED = {'tie_word_embeddings': False}, {'tie_word_embeddings': True}
ALTERNATING = {'layer_types': ['sliding_attention', 'full_attention'] * 2}


def theta(base, **more):
    return {'rope_parameters': {'rope_type': 'default', 'rope_theta': base, **more}}


LLAMA3 = theta(500.0, rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=16)
LATENT = {**SIZES, 'num_key_value_heads': 4, 'kv_lora_rank': 12, 'qk_nope_head_dim': 10, 'qk_rope_head_dim': 6,
          'v_head_dim': 8, 'moe_intermediate_size': 24, 'num_experts_per_tok': 3}
CONFIGS = {
    'gpt2': T.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1,
                         eos_token_id=2),
    'gpt2_scales': T.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1,
                                eos_token_id=2, scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
    'llama': T.LlamaConfig(**SIZES, **UNTIED, **theta(100.0)),
    'llama3': T.LlamaConfig(**SIZES, **TIED, **LLAMA3, head_dim=12, attention_bias=True, mlp_bias=True),
    'llama_linear': T.LlamaConfig(**SIZES, **TIED, **theta(100.0, rope_type='linear', factor=2.0)),
    'mistral': T.MistralConfig(**SIZES, **UNTIED, **theta(100.0), sliding_window=7),
    'mistral_both': T.MistralConfig(**SIZES, **UNTIED, **theta(100.0), sliding_window=5, is_causal=False),
    'qwen2': T.Qwen2Config(**SIZES, **TIED, **theta(1000.0)),
    'qwen2_window': T.Qwen2Config(**SIZES, **UNTIED, **theta(1000.0), use_sliding_window=True, sliding_window=5,
                                  max_window_layers=2),
    'qwen3': T.Qwen3Config(**SIZES, **TIED, **theta(1000.0), head_dim=10),
    'gemma2': T.Gemma2Config(**SIZES, **TIED, **theta(100.0), **ALTERNATING, head_dim=12, sliding_window=6,
                             query_pre_attn_scalar=10, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    'gemma3': T.Gemma3TextConfig(
        **SIZES, **TIED, head_dim=12, sliding_window=6, query_pre_attn_scalar=10, layer_types=[
            'sliding_attention', 'sliding_attention', 'full_attention', 'sliding_attention'],
        rope_parameters={'full_attention': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 1000.0},
                         'sliding_attention': {'rope_type': 'default', 'rope_theta': 10.0}}),
    'gemma3_both': T.Gemma3TextConfig(
        **SIZES, **TIED, head_dim=12, sliding_window=9, query_pre_attn_scalar=10, use_bidirectional_attention=True,
        layer_types=['sliding_attention', 'sliding_attention', 'full_attention', 'sliding_attention'],
        rope_parameters={'full_attention': {'rope_type': 'default', 'rope_theta': 1000.0},
                         'sliding_attention': {'rope_type': 'default', 'rope_theta': 10.0}}),
    'olmo2': T.Olmo2Config(**SIZES, **UNTIED, **theta(100.0)),
    'phi3': T.Phi3Config(**SIZES, **UNTIED, **theta(100.0, partial_rotary_factor=0.5), sliding_window=9),
    'phi3_short': T.Phi3Config(**SIZES, **UNTIED, original_max_position_embeddings=32, **theta(
        100.0, rope_type='longrope', partial_rotary_factor=0.5, short_factor=[1.0, 1.5], long_factor=[2.0, 4.0])),
    'phi3_long': T.Phi3Config(**SIZES, **UNTIED, original_max_position_embeddings=16, **theta(
        100.0, rope_type='longrope', short_factor=[1.0, 1.5, 2.0, 2.5], long_factor=[2.0, 4.0, 6.0, 8.0])),
    'gpt_neox': T.GPTNeoXConfig(
        **{name: size for name, size in SIZES.items() if name not in ('num_key_value_heads', 'pad_token_id')}, **UNTIED,
        **theta(100.0, partial_rotary_factor=0.5), use_parallel_residual=True),
    'gpt_neox_serial': T.GPTNeoXConfig(
        **{name: size for name, size in SIZES.items() if name not in ('num_key_value_heads', 'pad_token_id')}, **UNTIED,
        **theta(100.0, partial_rotary_factor=0.5, rope_type='yarn', factor=4.0, original_max_position_embeddings=16),
        use_parallel_residual=False, hidden_act='gelu_new'),
    'gpt_oss': T.GptOssConfig(
        **SIZES, **UNTIED, **ALTERNATING, head_dim=8, sliding_window=6, num_local_experts=6, num_experts_per_tok=2,
        **theta(1000.0, rope_type='yarn', factor=4.0, original_max_position_embeddings=16, beta_fast=32.0,
                beta_slow=1.0, truncate=False)),
    'mixtral': T.MixtralConfig(**SIZES, **UNTIED, **theta(100.0), num_local_experts=4, num_experts_per_tok=2),
    'qwen3_moe': T.Qwen3MoeConfig(**SIZES, **UNTIED, **theta(100.0), head_dim=8, num_experts=6, num_experts_per_tok=2,
                                  moe_intermediate_size=24, norm_topk_prob=True),
    'qwen3_moe_plain': T.Qwen3MoeConfig(**SIZES, **TIED, **theta(100.0), head_dim=8, num_experts=4,
                                        num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=False,
                                        mlp_only_layers=[0, 2], use_sliding_window=True, sliding_window=5),
    'deepseek': T.DeepseekV3Config(
        **LATENT, **UNTIED, q_lora_rank=20, n_routed_experts=8, n_shared_experts=2, n_group=4, topk_group=2,
        first_k_dense_replace=1, **theta(100.0, rope_type='yarn', factor=4.0, original_max_position_embeddings=16,
                                         beta_fast=4, beta_slow=1, mscale=0.8, mscale_all_dim=1.2)),
    'deepseek_plain': T.DeepseekV3Config(
        **LATENT, **TIED, q_lora_rank=None, n_routed_experts=6, n_shared_experts=1, n_group=1, topk_group=1,
        first_k_dense_replace=2, norm_topk_prob=False, routed_scaling_factor=1.5,
        **theta(100.0, rope_type='linear', factor=4.0, mscale_all_dim=1.2)),
    'deepseek_three': T.DeepseekV3Config(
        **LATENT, **UNTIED, q_lora_rank=20, n_routed_experts=8, n_shared_experts=1, n_group=2, topk_group=1,
        first_k_dense_replace=3, attention_bias=True, **theta(
            100.0, rope_type='yarn', factor=40.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0)),
    'smollm3': T.SmolLM3Config(**SIZES, **TIED, **theta(100.0), no_rope_layers=[1, 1, 0, 1]),
}


def tokens():
    return np.random.default_rng(0).integers(0, VOCAB, (ROWS, LENGTH)).astype(np.int64)


@torch.no_grad()
def outputs(model, ids):
    """Returns {name: array}: logits [B T V], and the hidden states [L B T D] after each layer but the last."""
    result = model(torch.tensor(ids), output_hidden_states=True)
    states = np.stack([x.float().numpy() for x in result.hidden_states])
    return {'tokens': ids, 'logits': result.logits.float().numpy(), 'states': states[1:-1]}


def make(out):
    """Makes a model of each family with parameters wide enough that every one matters."""
    for number, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(number)
        config._attn_implementation = 'eager'
        model = T.AutoModelForCausalLM.from_config(config).float().eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                parameter.normal_(0.0, 0.3).add_(1.0 if 'norm' in path and path.endswith('weight')
                                                 and 'gemma' not in name else 0.0)
            for path, buffer in model.named_buffers():
                if path.endswith('e_score_correction_bias'):
                    buffer.normal_(0.0, 0.3)
        model.save_pretrained(f'{out}/{name}', max_shard_size='20KB' if name == 'llama' else '5GB')
        np.savez(f'{out}/{name}.npz', **outputs(model, tokens()))


def run(*directories):
    """Loads directories as transformers does, and runs each on its `tokens.npy`."""
    faults = {}
    for directory in directories:
        model, about = T.AutoModelForCausalLM.from_pretrained(
            directory, output_loading_info=True, attn_implementation='eager', dtype=torch.float32)
        faults[directory] = {key: sorted(map(str, value)) for key, value in about.items() if value}
        ids = np.load(f'{directory}/tokens.npy')
        np.savez(f'{directory}/ran.npz', **outputs(model.eval(), ids))
        if os.path.exists(f'{directory}/prompt.npy'):
            prompt = torch.tensor(np.load(f'{directory}/prompt.npy'))
            model.generation_config.eos_token_id = None
            more = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False)
            np.save(f'{directory}/greedy.npy', more[:, prompt.shape[1]:].numpy())
    print(json.dumps(faults))


def mxfp4(out):
    """Writes OUT/mxfp4.npz: random blocks and scales, and the values that transformers makes of them."""
    rng = np.random.default_rng(0)
    blocks, scales = (rng.integers(*span, shape).astype(np.uint8) for span, shape in (
        ((0, 256), (3, 40, 2, 16)), ((90, 160), (3, 40, 2))))
    values = convert_moe_packed_tensors(torch.tensor(blocks), torch.tensor(scales))
    np.savez(f'{out}/mxfp4.npz', blocks=blocks, scales=scales, values=values.float().numpy())


FULL = {
    'llama_70b': T.LlamaConfig(vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80,
                               num_attention_heads=64, num_key_value_heads=8, rms_norm_eps=1e-5, **UNTIED,
                               **theta(500000.0)),
    'gemma2_27b': T.Gemma2Config(hidden_size=4608, intermediate_size=36864, num_hidden_layers=46,
                                 num_attention_heads=32, num_key_value_heads=16, head_dim=128,
                                 query_pre_attn_scalar=144),
    'qwen3_32b': T.Qwen3Config(vocab_size=151936, hidden_size=5120, intermediate_size=25600, num_hidden_layers=64,
                               num_attention_heads=64, num_key_value_heads=8, head_dim=128, **UNTIED),
    'gpt2_xl': T.GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    'deepseek_v3': T.DeepseekV3Config(**theta(
        10000.0, rope_type='yarn', factor=40.0, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1,
        mscale=1.0, mscale_all_dim=1.0)),
}


def headers(out):
    """Writes names and shapes of models of full size, which have no memory."""
    for name, config in FULL.items():
        with torch.device('meta'):
            model = T.AutoModelForCausalLM.from_config(config)
        skipped = {'lm_head.weight'} if config.tie_word_embeddings else set()
        stored = core_model_loading.revert_weight_conversion(model, model.state_dict())  # one tensor for each expert
        shapes = {key: list(x.shape) for key, x in stored.items() if key not in skipped}
        config.architectures = [type(model).__name__]
        with open(f'{out}/{name}.json', 'w') as file:
            json.dump({'config': config.to_dict(), 'shapes': shapes}, file)


if __name__ == '__main__':
    globals()[sys.argv[1]](*sys.argv[2:])
