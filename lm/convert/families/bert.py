"""BERT (Devlin et al. 2018), and encoders of sentences in its shape, which have no head, see convert.sentences."""
from lm import config
from lm.convert import dense, dialects, sentences
from lm.convert.tables import Tensor
from lm.models import Encoder, First, Layer, MaskedHead, NoHead, PostNorm, TypedEmbedding
from lm.nn import MLP, Attention, LayerNorm, Learned, NoPE

ARCHITECTURE, MODEL_TYPE = 'BertForMaskedLM', 'bert'
IGNORED = r'(^|\.)(position_ids|pooler\.dense\.(weight|bias))$|^cls\.predictions\.bias$'  # the last where not tied
COPIES = {'cls.predictions.decoder.bias': 'cls.predictions.bias'}


def both(ours, theirs, layout):
    """Returns the Tensors of a matrix and its bias."""
    return {ours: Tensor(f'{theirs}.weight', layout), f'{ours}_bias': Tensor(f'{theirs}.bias', layout.split()[0])}


def norm(ours, theirs):
    """Returns the Tensors of a LayerNorm."""
    return {f'{ours}_scale': Tensor(f'{theirs}.weight'), f'{ours}_bias': Tensor(f'{theirs}.bias')}


def table(base, positions='T D'):
    """Returns the table of the encoder itself, whose tensors begin with `base`."""
    layer = f'{base}.encoder.layer.{{L}}.'
    return {
        'tokens': Tensor(f'{base}.embeddings.word_embeddings.weight', 'V D'),
        'positions': Tensor(f'{base}.embeddings.position_embeddings.weight', positions),
        'types': Tensor(f'{base}.embeddings.token_type_embeddings.weight', 'Y D'),
        **norm('embedding_norm', f'{base}.embeddings.LayerNorm'),
        **both('blocks/attention/query', f'{layer}attention.self.query', 'NH D'),
        **both('blocks/attention/key', f'{layer}attention.self.key', 'KH D'),
        **both('blocks/attention/value', f'{layer}attention.self.value', 'KH D'),
        'blocks/attention/out': Tensor(f'{layer}attention.output.dense.weight', 'D NH'),
        'blocks/attention/out_bias': Tensor(f'{layer}attention.output.dense.bias'),
        **norm('blocks/attention_norm', f'{layer}attention.output.LayerNorm'),
        'blocks/mlp/up': Tensor(f'{layer}intermediate.dense.weight', 'F D'),
        'blocks/mlp/up_bias': Tensor(f'{layer}intermediate.dense.bias'),
        'blocks/mlp/down': Tensor(f'{layer}output.dense.weight', 'D F'),
        'blocks/mlp/down_bias': Tensor(f'{layer}output.dense.bias'),
        **norm('blocks/mlp_norm', f'{layer}output.LayerNorm'),
        **both('pooler', f'{base}.pooler.dense', 'I D')}


def output(model, base):
    """Returns the Tensors of the output layer, whose bias has a name of its own where the matrix is tied."""
    return {'output': Tensor(f'{base}.decoder.weight', 'V D'),
            'output_bias': Tensor(f'{base}.bias' if model.head.tied else f'{base}.decoder.bias', 'V')}


def TABLE(model):
    """Returns the table of a model, see output."""
    return {**table('bert'), **both('dense', 'cls.predictions.transform.dense', 'I D'),
            **norm('dense_norm', 'cls.predictions.transform.LayerNorm'), **output(model, 'cls.predictions'),
            **both('classifier', 'cls.seq_relationship', 'C D')}



LAYER = 'bert.encoder.layer.{L}.'
POOLINGS = {0: [], 1: ['mean'], 2: ['cls'], 3: ['last'], 4: ['rank']}  # by the numbers of llama.cpp
GGUF = dialects.Dialect(
    'bert', {'block_count': 'num_hidden_layers', 'embedding_length': 'hidden_size', 'attention.head_count':
             'num_attention_heads', 'feed_forward_length': 'intermediate_size', 'context_length':
             'max_position_embeddings', 'attention.layer_norm_epsilon': 'layer_norm_eps', 'pooling_type':
             'pooling_type'},
    {'token_embd': 'bert.embeddings.word_embeddings', 'position_embd': 'bert.embeddings.position_embeddings',
     'token_types': 'bert.embeddings.token_type_embeddings', 'token_embd_norm': 'bert.embeddings.LayerNorm',
     'attn_q': f'{LAYER}attention.self.query', 'attn_k': f'{LAYER}attention.self.key',
     'attn_v': f'{LAYER}attention.self.value', 'attn_output': f'{LAYER}attention.output.dense',
     'attn_output_norm': f'{LAYER}attention.output.LayerNorm', 'ffn_up': f'{LAYER}intermediate.dense',
     'ffn_down': f'{LAYER}output.dense', 'layer_output_norm': f'{LAYER}output.LayerNorm'},
    complete=lambda hf: {'hidden_act': 'gelu', 'type_vocab_size': 2, 'architectures': ['BertModel'],
                         sentences.KEY: POOLINGS.get(hf.get('pooling_type', 0), ['another kind'])})


def encoder(hf, length, head, **fields):
    """Returns the Encoder of a config.json for texts of at most `length` tokens; head: whether it predicts some."""
    if hf.get('is_decoder') or hf.get('position_embedding_type', 'absolute') != 'absolute':
        raise config.Error('config.json has is_decoder=true or position_embedding_type other than absolute, which lm '
                           'lacks for BERT; convert an encoder with absolute positions.')
    activation, layer_norm = dense.activation(hf), LayerNorm(hf['layer_norm_eps'])
    layer = Layer(Attention(hf['num_attention_heads'], causal=False, position=NoPE(), bias='all'),
                  MLP(hf['intermediate_size'], activation, bias=True), norm=layer_norm, residual=PostNorm())
    embedding = TypedEmbedding(Learned(length), norm=layer_norm, types=hf['type_vocab_size'])
    tied = hf.get('tie_word_embeddings', True)
    head = MaskedHead(tied, activation=activation, norm=layer_norm) if head else NoHead()
    return Encoder(hf['vocab_size'], hf['num_hidden_layers'], hf['hidden_size'], layer, embedding=embedding, head=head,
                   **{'pooling': sentences.pooling(hf), **fields})


def settings(model):
    """Returns the keys of a config.json that `encoder` reads, but for the length."""
    layer = model.layers[0]
    return {'vocab_size': model.vocab, 'hidden_size': model.width, 'num_hidden_layers': model.depth,
            'num_attention_heads': layer.attention.heads, 'intermediate_size': layer.mlp.hidden(model.width),
            'hidden_act': dense.activation_name(layer.mlp.activation), 'layer_norm_eps': layer.norm.epsilon,
            'type_vocab_size': model.embedding.types, 'is_decoder': False,
            'tie_word_embeddings': model.head.tied, **sentences.settings(model)}


def read(hf):
    kind = (hf.get('architectures') or ['BertModel'])[0]
    pair = kind in ('BertForPreTraining', 'BertForNextSentencePrediction')
    return encoder(hf, hf['max_position_embeddings'], kind in ('BertForMaskedLM', 'BertForPreTraining'),
                   **({'pooling': First(), 'classes': 2} if pair else {}))


def write(model):
    if model.embedding.types < 2:
        raise config.Error('BERT has two types of tokens or more; RoBERTa has one.')
    kind = {(True, True): 'BertForPreTraining', (True, False): 'BertForMaskedLM', (False, False): 'BertModel',
            (False, True): 'BertForNextSentencePrediction'}[isinstance(model.head, MaskedHead), model.classes == 2]
    return settings(model) | {'architectures': [kind], 'max_position_embeddings': model.embedding.position.length}
