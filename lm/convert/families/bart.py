"""BART (Lewis et al. 2019): positions begin at 2, norms follow the embedding and the residual connections."""
from lm import config
from lm.convert import dense
from lm.convert.families import bert
from lm.convert.tables import Tensor
from lm.models import Embedding, EncoderDecoder, Half, Layer, PostNorm
from lm.nn import MLP, Attention, LayerNorm, Learned, NoPE

ARCHITECTURE, MODEL_TYPE = 'BartForConditionalGeneration', 'bart'
OFFSET = 2
COPIES = {**{f'model.{side}.embed_tokens.weight': 'model.shared.weight' for side in ('encoder', 'decoder')},
          'final_logits_bias': None}
SUBLAYERS = {'attention': 'self_attn', 'cross': 'encoder_attn'}
PROJECTIONS = {'query': ('q_proj', 'NH D'), 'key': ('k_proj', 'KH D'), 'value': ('v_proj', 'KH D'),
               'out': ('out_proj', 'D NH')}
TABLE = {'tokens': Tensor('model.shared.weight', 'V D'), 'output': Tensor('lm_head.weight', 'V D')}
for side in ('encoder', 'decoder'):
    base, layer = f'model.{side}.', f'model.{side}.layers.{{L}}.'
    TABLE |= {f'{side}/positions': Tensor(f'{base}embed_positions.weight', f'0/{OFFSET}+(T) D'),
              **bert.norm(f'{side}/embedding_norm', f'{base}layernorm_embedding'),
              **bert.norm(f'{side}/blocks/mlp_norm', f'{layer}final_layer_norm'),
              f'{side}/blocks/mlp/up': Tensor(f'{layer}fc1.weight', 'F D'),
              f'{side}/blocks/mlp/down': Tensor(f'{layer}fc2.weight', 'D F'),
              f'{side}/blocks/mlp/up_bias': Tensor(f'{layer}fc1.bias'),
              f'{side}/blocks/mlp/down_bias': Tensor(f'{layer}fc2.bias')}
    for ours, theirs in SUBLAYERS.items():
        TABLE |= bert.norm(f'{side}/blocks/{ours}_norm', f'{layer}{theirs}_layer_norm')
        for name, (projection, layout) in PROJECTIONS.items():
            path, tensor = f'{side}/blocks/{ours}/{name}', f'{layer}{theirs}.{projection}'
            TABLE |= {path: Tensor(f'{tensor}.weight', layout),
                      f'{path}_bias': Tensor(f'{tensor}.bias', 'B' if name == 'out' else layout.split()[0])}


def read(hf):
    if not hf.get('tie_word_embeddings', True):
        raise config.Error('config.json has tie_word_embeddings=false: three tables of embeddings and an output layer, '
                           'where lm has one for all; convert a BART in which they are tied.')
    norm = LayerNorm(1e-5)

    def half(side, causal):
        heads = hf[f'{side}_attention_heads']
        own, cross = (Attention(heads, causal=ahead, position=NoPE(), bias='all') for ahead in (causal, False))
        mlp = MLP(hf[f'{side}_ffn_dim'], dense.activation(hf, 'activation_function'), bias=True)
        return Half(hf[f'{side}_layers'], Layer(own, mlp, cross if causal else None, norm, PostNorm()))
    embedding = Embedding(Learned(hf['max_position_embeddings']), scaled=hf.get('scale_embedding', False), norm=norm)
    return EncoderDecoder(hf['vocab_size'], hf['decoder_start_token_id'], hf['d_model'], half('encoder', False),
                          half('decoder', True), embedding)


def write(model):
    sizes = {}
    for side, half in (('encoder', model.encoder), ('decoder', model.decoder)):
        layer = half.stack.layer(0)
        sizes |= {f'{side}_layers': half.depth, f'{side}_attention_heads': layer.attention.heads,
                  f'{side}_ffn_dim': layer.mlp.hidden(model.width)}
    return {'vocab_size': model.vocab, 'd_model': model.width, **sizes, 'scale_embedding': model.embedding.scaled,
            'max_position_embeddings': model.embedding.position.length, 'decoder_start_token_id': model.start,
            'activation_function': dense.activation_name(layer.mlp.activation), 'is_encoder_decoder': True,
            'forced_eos_token_id': None, 'tie_word_embeddings': True, 'dropout': 0.0, 'attention_dropout': 0.0}
