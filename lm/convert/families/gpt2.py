"""GPT-2 (Radford et al. 2019): learned positions, and projections stored as [inputs outputs], fused."""
from lm.convert import dense, dialects
from lm.convert.tables import Tensor
from lm.models import Decoder, Embedding, Head, Layer
from lm.nn import MLP, Attention, LayerNorm, Learned, NoPE

ARCHITECTURE, MODEL_TYPE = 'GPT2LMHeadModel', 'gpt2'
LAYER = 'transformer.h.{L}.'
PARTS = {'query': '(NH)+KH+KH', 'key': 'NH+(KH)+KH', 'value': 'NH+KH+(KH)'}
NORMS = {'final_norm': 'transformer.ln_f', 'blocks/attention_norm': f'{LAYER}ln_1', 'blocks/mlp_norm': f'{LAYER}ln_2'}
TABLE = {
    'tokens': Tensor('transformer.wte.weight', 'V D'), 'positions': Tensor('transformer.wpe.weight', 'T D'),
    'output': Tensor('lm_head.weight', 'V D'),
    **{f'blocks/attention/{ours}': Tensor(f'{LAYER}attn.c_attn.weight', f'D {axes}') for ours, axes in PARTS.items()},
    **{f'blocks/attention/{ours}_bias': Tensor(f'{LAYER}attn.c_attn.bias', axes) for ours, axes in PARTS.items()},
    'blocks/attention/out': Tensor(f'{LAYER}attn.c_proj.weight', 'NH D'),
    'blocks/attention/out_bias': Tensor(f'{LAYER}attn.c_proj.bias'),
    'blocks/mlp/up': Tensor(f'{LAYER}mlp.c_fc.weight', 'D F'), 'blocks/mlp/up_bias': Tensor(f'{LAYER}mlp.c_fc.bias'),
    'blocks/mlp/down': Tensor(f'{LAYER}mlp.c_proj.weight', 'F D'),
    'blocks/mlp/down_bias': Tensor(f'{LAYER}mlp.c_proj.bias'),
    **{f'{ours}_{kind}': Tensor(f'{theirs}.{ending}') for ours, theirs in NORMS.items()
       for kind, ending in (('scale', 'weight'), ('bias', 'bias'))}}
IGNORED = r'\.attn\.(masked_)?bias$'  # masks
GGUF = dialects.Dialect(
    'gpt2', {'block_count': 'n_layer', 'embedding_length': 'n_embd', 'attention.head_count': 'n_head',
             'feed_forward_length': 'n_inner', 'context_length': 'n_positions',
             'attention.layer_norm_epsilon': 'layer_norm_epsilon', 'attention.causal': 'is_causal',
             'vocab_size': 'vocab_size'},
    {'token_embd': 'transformer.wte', 'position_embd': 'transformer.wpe', 'output_norm': 'transformer.ln_f',
     'output': 'lm_head', 'attn_norm': 'transformer.h.{L}.ln_1', 'ffn_norm': 'transformer.h.{L}.ln_2',
     'attn_qkv': 'transformer.h.{L}.attn.c_attn', 'attn_output': 'transformer.h.{L}.attn.c_proj',
     'ffn_up': 'transformer.h.{L}.mlp.c_fc', 'ffn_down': 'transformer.h.{L}.mlp.c_proj'},
    {r'\.(c_attn|c_proj|c_fc)\.weight$': lambda array, hf: array.T}, lambda hf: {'activation_function': 'gelu_new'})


def read(hf):
    ff, depth = hf.get('n_inner') or 4 * hf['n_embd'], hf['n_layer']
    scale = None if hf.get('scale_attn_weights', True) else 1.0

    def layer(scale):
        attention = Attention(hf['n_head'], causal=hf.get('is_causal', True), position=NoPE(), scale=scale, bias='all')
        return Layer(attention, MLP(ff, dense.activation(hf, 'activation_function'), bias=True),
                     norm=LayerNorm(hf['layer_norm_epsilon']))
    layers = {'layer': layer(scale)}
    if hf.get('scale_attn_by_inverse_layer_idx'):
        first = scale or (hf['n_embd'] // hf['n_head']) ** -0.5
        layers = {'pattern': tuple(layer(first / (number + 1)) for number in range(depth))}
    return Decoder(hf['vocab_size'], depth, hf['n_embd'], **layers, embedding=Embedding(Learned(hf['n_positions'])),
                   head=Head(hf.get('tie_word_embeddings', True)))


def write(model):
    layer, last = (model.stack.layer(number) for number in (0, model.depth - 1))
    activation = dense.activation_name(layer.mlp.activation)
    return {'vocab_size': model.vocab, 'n_layer': model.depth, 'n_embd': model.width, 'n_head': layer.attention.heads,
            'scale_attn_weights': layer.attention.scale != 1.0,
            'scale_attn_by_inverse_layer_idx': layer.attention.scale != last.attention.scale,
            **({} if layer.attention.causal else {'is_causal': False}),
            'n_inner': layer.mlp.hidden(model.width), 'n_positions': model.embedding.position.length,
            'activation_function': 'gelu_new' if activation == 'gelu_pytorch_tanh' else activation,
            'layer_norm_epsilon': layer.norm.epsilon, 'tie_word_embeddings': model.head.tied}
