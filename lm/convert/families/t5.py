"""T5 (Raffel et al. 2019), 1.0 and 1.1: relative positions of the first layer for all, scores that are not scaled."""
from lm.convert import dense
from lm.convert.tables import Tensor
from lm.models import EncoderDecoder, Half, Head, Layer, ScaledHead
from lm.nn import MLP, Attention, NoPE, Relative, RMSNorm

ARCHITECTURE, MODEL_TYPE = 'T5ForConditionalGeneration', 't5'
COPIES = {f'{side}.embed_tokens.weight': 'shared.weight' for side in ('encoder', 'decoder')}


def attention(ours, theirs):
    """Returns the Tensors of the projections of an attention."""
    axes = {'query': ('q', 'NH D'), 'key': ('k', 'KH D'), 'value': ('v', 'KH D'), 'out': ('o', 'D NH')}
    return {f'{ours}/{name}': Tensor(f'{theirs}.{letter}.weight', layout) for name, (letter, layout) in axes.items()}


def TABLE(model):
    """Returns the table of a model: the first matrix of an MLP that is not gated has a name of its own."""
    table = {'tokens': Tensor('shared.weight', 'V D'), 'output': Tensor('lm_head.weight', 'V D')}
    for side, sublayers in (('encoder', ('attention', 'mlp')), ('decoder', ('attention', 'cross', 'mlp'))):
        layer = f'{side}.block.{{L}}.layer.'
        mlp, feed = f'{side}/blocks/mlp', f'{layer}{len(sublayers) - 1}.DenseReluDense'
        up = 'wi_1' if getattr(model, side).stack.layer(0).mlp.gated else 'wi'
        table |= {f'{side}/relative': Tensor(f'{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight',
                                             'T N'),
                  f'{side}/final_norm_scale': Tensor(f'{side}.final_layer_norm.weight'),
                  **attention(f'{side}/blocks/attention', f'{layer}0.SelfAttention'),
                  **attention(f'{side}/blocks/cross', f'{layer}1.EncDecAttention'),
                  **{f'{mlp}/{ours}': Tensor(f'{feed}.{theirs}.weight', layout) for ours, theirs, layout in (
                      ('up', up, 'F D'), ('gate', 'wi_0', 'F D'), ('down', 'wo', 'D F'))},
                  **{f'{side}/blocks/{name}_norm_scale': Tensor(f'{layer}{number}.layer_norm.weight')
                     for number, name in enumerate(sublayers)}}
    return table


def read(hf):
    gated, _, name = hf.get('feed_forward_proj', 'relu').rpartition('gated-')
    gated = hf.get('feed_forward_proj', 'relu').startswith('gated-')
    activation = dense.activation({'feed_forward_proj': 'gelu_new' if gated and name == 'gelu' else name},
                                  'feed_forward_proj')

    def half(depth, causal):
        place = Relative(hf['relative_attention_num_buckets'], hf['relative_attention_max_distance'], causal)
        sizes = {'heads': hf['num_heads'], 'head_dim': hf['d_kv'], 'scale': 1.0}
        cross = Attention(**sizes, causal=False, position=NoPE()) if causal else None
        return Half(depth, Layer(Attention(**sizes, causal=causal, position=place), MLP(hf['d_ff'], activation, gated),
                                 cross=cross, norm=RMSNorm(hf['layer_norm_epsilon'])))
    tied = hf.get('tie_word_embeddings', True)
    scaled = hf.get('scale_decoder_outputs', tied)  # before transformers 5 this followed from the other
    return EncoderDecoder(hf['vocab_size'], hf.get('decoder_start_token_id') or 0, hf['d_model'],
                          half(hf['num_layers'], False), half(hf.get('num_decoder_layers') or hf['num_layers'], True),
                          head=(ScaledHead if scaled else Head)(tied))


def write(model):
    layer = model.encoder.stack.layer(0)
    name = dense.activation_name(layer.mlp.activation)
    position = layer.attention.position
    return {'vocab_size': model.vocab, 'd_model': model.width, 'd_kv': layer.attention.head_size(model.width),
            'd_ff': layer.mlp.hidden(model.width), 'num_layers': model.encoder.depth, 'is_encoder_decoder': True,
            'num_decoder_layers': model.decoder.depth, 'num_heads': layer.attention.heads,
            'relative_attention_num_buckets': position.buckets, 'relative_attention_max_distance': position.distance,
            'layer_norm_epsilon': layer.norm.epsilon, 'decoder_start_token_id': model.start,
            'feed_forward_proj': f'gated-{name.removesuffix("_pytorch_tanh")}' if layer.mlp.gated else name,
            'tie_word_embeddings': model.head.tied, 'scale_decoder_outputs': isinstance(model.head, ScaledHead),
            'dropout_rate': 0.0}
