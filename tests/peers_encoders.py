"""Runs in the environment of the heavy peers, as peers_models.py does: encoders of transformers, and sentence vectors.

    python peers_encoders.py make OUT MINILM   writes OUT/<name>/ and OUT/<name>.npz, and OUT/minilm.npz
    python peers_encoders.py run DIRECTORY...  prints, as JSON, how exported directories load; writes DIRECTORY/ran.npz
"""
import json
import os
import sys

os.environ |= {'HF_HUB_OFFLINE': '1', 'TRANSFORMERS_VERBOSITY': 'error', 'HF_HUB_DISABLE_PROGRESS_BARS': '1'}

import numpy as np
import torch
import transformers as T

VOCAB, ROWS, LENGTH = 100, 3, 24
SIZES = {'vocab_size': VOCAB, 'hidden_size': 32, 'intermediate_size': 48, 'num_attention_heads': 4,
         'max_position_embeddings': 40, 'attn_implementation': 'eager'}
MODELS = {
    'bert': (T.BertForMaskedLM, T.BertConfig(**SIZES, num_hidden_layers=3, hidden_act='gelu_new', type_vocab_size=3)),
    'bert_pair': (T.BertForPreTraining, T.BertConfig(**SIZES, num_hidden_layers=2)),
    'roberta': (T.RobertaForMaskedLM, T.RobertaConfig(**SIZES, num_hidden_layers=3, type_vocab_size=1, pad_token_id=1)),
    'modernbert': (T.ModernBertForMaskedLM, T.ModernBertConfig(
        **SIZES, num_hidden_layers=5, local_attention=8, rope_parameters={
            'full_attention': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 1000.0},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 10.0}},
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)),
}
TEXTS = ['A man is eating food.', 'Someone has a meal.', 'The girl is carrying a baby.',
         'Ünïcödé, 漢字 and 🙂 — [MASK] tokens too', 'cheetah ' * 300, 'x']


def inputs(name):
    """Returns the ids, the mask of which one row is partly padding, and types where a model has them."""
    rng = np.random.default_rng(0)
    tokens, mask = rng.integers(3, VOCAB, (ROWS, LENGTH)), np.ones((ROWS, LENGTH), np.int64)
    mask[0, 17:] = 0
    tokens[mask == 0] = 1 if name == 'roberta' else 0
    batch = {'input_ids': tokens, 'attention_mask': mask}
    return batch | {'token_type_ids': rng.integers(0, 2, (ROWS, LENGTH))} if name.startswith('bert') else batch


@torch.no_grad()
def outputs(model, batch):
    result = model(**{key: torch.tensor(value) for key, value in batch.items()}, output_hidden_states=True)
    logits = result.logits if 'logits' in result else result.prediction_logits
    arrays = {'logits': logits, 'states': torch.stack(result.hidden_states[1:])}
    arrays |= {'pairs': result.seq_relationship_logits} if 'seq_relationship_logits' in result else {}
    return {key: value.float().numpy() for key, value in arrays.items()} | batch


def make(out, minilm):
    for number, (name, (kind, config)) in enumerate(MODELS.items()):
        torch.manual_seed(number)
        model = kind(config).float().eval()
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                scale = 'norm' in path.lower() and path.endswith('weight')
                parameter.normal_(0.0, 0.3).add_(1.0 if scale else 0.0)
        model.save_pretrained(f'{out}/{name}')
        np.savez(f'{out}/{name}.npz', **outputs(model, inputs(name)))
    sentences(out, minilm)


@torch.no_grad()
def sentences(out, minilm):
    """Writes the hidden states and vectors of TEXTS: means over tokens, of length 1, as sentence-transformers' modules.
    """
    tokenizer = T.AutoTokenizer.from_pretrained(minilm)
    model = T.AutoModel.from_pretrained(minilm, attn_implementation='eager').float().eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=512, return_tensors='pt',
                      split_special_tokens=True)
    states = model(**batch).last_hidden_state
    mask = batch['attention_mask'][..., None].float()
    means = (states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    np.savez(f'{out}/minilm.npz', states=states.numpy(), vectors=torch.nn.functional.normalize(means).numpy(),
             texts=TEXTS, **{key: value.numpy() for key, value in batch.items()})


def run(*directories):
    faults = {}
    for directory in directories:
        name = os.path.basename(directory)
        model, about = MODELS[name][0].from_pretrained(
            directory, output_loading_info=True, attn_implementation='eager', dtype=torch.float32)
        faults[directory] = {key: sorted(map(str, value)) for key, value in about.items() if value}
        np.savez(f'{directory}/ran.npz', **outputs(model.eval(), inputs(name)))
    print(json.dumps(faults))


if __name__ == '__main__':
    globals()[sys.argv[1]](*sys.argv[2:])
