"""ModernBERT (Warner et al. 2024): alternating windows, gated MLPs, RoPE of two bases; see models.encoder."""
from lm import config
from lm.convert import dense, sentences
from lm.convert.tables import Tensor
from lm.models import Embedding, MaskedHead, NoHead
from lm.models.encoder import modern_bert
from lm.nn import LayerNorm

ARCHITECTURE, MODEL_TYPE = 'ModernBertForMaskedLM', 'modernbert'
LAYER = 'model.layers.{L}.'
KINDS = ('full_attention', 'sliding_attention')
PARTS = {'query': '(NH)+KH+KH', 'key': 'NH+(KH)+KH', 'value': 'NH+KH+(KH)'}
TABLE = {
    'tokens': Tensor('model.embeddings.tok_embeddings.weight', 'V D'),
    'embedding_norm_scale': Tensor('model.embeddings.norm.weight'),
    **{f'blocks/attention/{ours}': Tensor(f'{LAYER}attn.Wqkv.weight', f'{axes} D') for ours, axes in PARTS.items()},
    'blocks/attention/out': Tensor(f'{LAYER}attn.Wo.weight', 'D NH'),
    'blocks/attention_norm_scale': Tensor(f'{LAYER}attn_norm.weight', first=1),
    'blocks/mlp/gate': Tensor(f'{LAYER}mlp.Wi.weight', '(F)+F D'),
    'blocks/mlp/up': Tensor(f'{LAYER}mlp.Wi.weight', 'F+(F) D'),
    'blocks/mlp/down': Tensor(f'{LAYER}mlp.Wo.weight', 'D F'),
    'blocks/mlp_norm_scale': Tensor(f'{LAYER}mlp_norm.weight'), 'final_norm_scale': Tensor('model.final_norm.weight'),
    'dense': Tensor('head.dense.weight', 'I D'), 'dense_norm_scale': Tensor('head.norm.weight'),
    'output': Tensor('decoder.weight', 'V D'), 'output_bias': Tensor('decoder.bias', 'V')}
FIXED = {'attention_bias': False, 'mlp_bias': False, 'norm_bias': False, 'classifier_bias': False, 'decoder_bias': True,
         'hidden_activation': 'gelu', 'classifier_activation': 'gelu'}


def read(hf):
    every, depth = hf.get('global_attn_every_n_layers') or 3, hf['num_hidden_layers']
    positions = [dense.rope(hf | {'rope_theta': hf.get(key, base)}, kind) for kind, key, base in zip(
        KINDS, ('global_rope_theta', 'local_rope_theta'), (160000, 10000), strict=True)]
    kinds = hf.get('layer_types') or [KINDS[i % every > 0] for i in range(depth)]
    every = next((every for every in range(1, depth + 1) if kinds == [KINDS[i % every > 0] for i in range(depth)]), 0)
    if not every:
        raise config.Error('config.json has layer_types other than ModernBERT base; lm reads every n-th layer of full '
                           'attention from the first.')
    norm = LayerNorm(hf['norm_eps'], bias=False)
    masked = (hf.get('architectures') or [ARCHITECTURE])[0] == ARCHITECTURE
    return modern_bert(hf['vocab_size'], depth, hf['hidden_size'], hf['num_attention_heads'],
                       ff=hf['intermediate_size'], window=hf['local_attention'], every=every, positions=positions,
                       epsilon=hf['norm_eps'], embedding=Embedding(norm=norm), pooling=sentences.pooling(hf),
                       head=MaskedHead(hf.get('tie_word_embeddings', True), norm=norm, dense_bias=False)
                       if masked else NoHead())


def write(model):
    windows = [layer.attention.window for layer in model.layers]
    positions = {KINDS[layer.attention.window > 0]: layer.attention.position for layer in reversed(model.layers)}
    first = model.layers[0]
    return FIXED | {
        'architectures': [ARCHITECTURE if isinstance(model.head, MaskedHead) else 'ModernBertModel'],
        'vocab_size': model.vocab, 'hidden_size': model.width, 'num_hidden_layers': model.depth,
        'num_attention_heads': first.attention.heads, 'intermediate_size': first.mlp.ff, 'norm_eps': first.norm.epsilon,
        'tie_word_embeddings': model.head.tied, **sentences.settings(model),
        'local_attention': 2 * max(max(windows) - 1, 0), 'layer_types': [KINDS[window > 0] for window in windows],
        'rope_parameters': {kind: dense.rope_parameters(position) for kind, position in positions.items()}}
