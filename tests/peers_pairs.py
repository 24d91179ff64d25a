"""Runs in the environment of the heavy peers, as peers_models.py does: encoder-decoders of transformers.

    python peers_pairs.py make OUT          writes OUT/<name>/ and OUT/<name>.npz
    python peers_pairs.py run DIRECTORY...  prints, as JSON, how exported directories load; writes DIRECTORY/ran.npz
"""
import json
import os
import sys

os.environ |= {'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_VERBOSITY': 'error', 'HF_HUB_DISABLE_PROGRESS_BARS': '1'}

import numpy as np
import torch
import transformers as T

VOCAB = 100
T5 = {'vocab_size': VOCAB, 'd_model': 32, 'd_kv': 10, 'd_ff': 48, 'num_layers': 2, 'num_decoder_layers': 2,
      'num_heads': 4, 'relative_attention_num_buckets': 8, 'relative_attention_max_distance': 16,
      'decoder_start_token_id': 0, 'attn_implementation': 'eager'}
MODELS = {
    't5': (T.T5ForConditionalGeneration, T.T5Config(**T5)),
    't5_gated': (T.T5ForConditionalGeneration, T.T5Config(**T5, feed_forward_proj='gated-gelu',
                                                          tie_word_embeddings=False)),
    'bart': (T.BartForConditionalGeneration, T.BartConfig(
        vocab_size=VOCAB, d_model=32, encoder_layers=2, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=40, max_position_embeddings=40,
        scale_embedding=True, attn_implementation='eager')),
}


def inputs():
    """Returns the source ids, the mask of which one row is partly padding, and the target ids."""
    rng = np.random.default_rng(0)
    mask = np.ones((3, 24), np.int64)
    mask[0, 17:] = 0
    return {'input_ids': rng.integers(3, VOCAB, (3, 24)), 'attention_mask': mask,
            'decoder_input_ids': rng.integers(3, VOCAB, (3, 15))}


@torch.no_grad()
def outputs(model):
    batch = inputs()
    result = model(**{key: torch.tensor(value) for key, value in batch.items()})
    prompt = {key: torch.tensor(batch[key]) for key in ('input_ids', 'attention_mask')}
    greedy = model.generate(**prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False, num_beams=1)
    return {**batch, 'logits': result.logits.numpy(), 'memory': result.encoder_last_hidden_state.numpy(),
            'greedy': greedy[:, 1:].numpy()}


def make(out):
    for number, (name, (kind, config)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        config.forced_eos_token_id = None
        model = kind(config).float().eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                scale = 'norm' in path.lower() and path.endswith('weight')
                parameter.normal_(0.0, 0.3).add_(1.0 if scale else 0.0)
        model.generation_config.eos_token_id = None
        model.generation_config.forced_eos_token_id = None
        model.save_pretrained(f'{out}/{name}')
        np.savez(f'{out}/{name}.npz', **outputs(model))


def run(*directories):
    faults = {}
    for directory in directories:
        kind, _ = MODELS[os.path.basename(directory)]
        model, about = kind.from_pretrained(directory, output_loading_info=True, attn_implementation='eager')
        faults[directory] = {key: sorted(map(str, value)) for key, value in about.items() if value}
        model.generation_config.eos_token_id = None
        model.generation_config.forced_eos_token_id = None
        np.savez(f'{directory}/ran.npz', **outputs(model.float().eval()))
    print(json.dumps(faults))


if __name__ == '__main__':
    globals()[sys.argv[1]](*sys.argv[2:])
