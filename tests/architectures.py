"""Small Decoders and Encoders that between them turn every switch at least once, random parameters, and a cheap jit."""
from dataclasses import fields
from functools import partial

import jax
import numpy as np

from lm.models import (
    Decoder,
    Embedding,
    Encoder,
    Head,
    Layer,
    MaskedHead,
    MultiTokenDecoder,
    OutputNorm,
    PostNorm,
    SandwichNorm,
    TypedEmbedding,
)
from lm.models.encoder import modern_bert
from lm.nn import (
    MLP,
    Alibi,
    Attention,
    ClampedSilu,
    Execution,
    Gelu,
    LayerNorm,
    Learned,
    LongRope,
    NoNorm,
    NoPE,
    Relative,
    Relu,
    Relu2,
    RMSNorm,
    Rope,
    Silu,
    Sinusoidal,
    Yarn,
)
from lm.train import NextToken


def small(**fields):
    """Returns a Decoder of 50 tokens, 2 layers of 4 heads and width 16, but for the fields given."""
    layers = {} if 'pattern' in fields else {'layer': Layer(Attention(4))}
    return Decoder(**{'vocab': 50, 'depth': 2, 'width': 16, **layers, **fields})


def gemma3(window, position):
    return Layer(Attention(4, 1, 8, window=window, position=position, qk_norm=RMSNorm(1e-6)),
                 MLP(24, Gelu(), gated=True), norm=RMSNorm(1e-6), residual=SandwichNorm())


def gemma2(window):
    return Layer(Attention(4, 2, window=window, softcap=1.5, position=Rope(factor=2.0), scale=0.7),
                 MLP(activation=Gelu(), gated=True))


def sinking(window):
    return Layer(Attention(4, 2, 8, window=window, position=Yarn(100.0, 4.0, 16, whole=False), sink=True, bias='all'),
                 MLP(20, ClampedSilu(limit=0.5), gated=True))


def alibi(window):
    return Layer(Attention(6, 3, window=window, softcap=2.0, position=Alibi()))


SWIGLU = MLP(activation=Silu(), gated=True)
DECODERS = {
    'gpt2': small(layer=Layer(Attention(4, position=NoPE(), bias='all'), MLP(bias=True), norm=LayerNorm()),
                  embedding=Embedding(Learned(20))),
    'llama': small(layer=Layer(Attention(4, 2), SWIGLU), head=Head(tied=False), execution=Execution(vocab_chunks=4)),
    'llama3': small(layer=Layer(Attention(4, 1, position=Rope(100.0, 8.0, original=32, low=1.5, high=3.0)), SWIGLU)),
    'qwen3': small(layer=Layer(Attention(4, 2, 6, qk_norm=RMSNorm()), MLP(20, Silu(), gated=True))),
    'gemma3': small(depth=4, pattern=(*[gemma3(3, Rope(10.0))] * 2, gemma3(0, Rope(100.0, 4.0))),
                    embedding=Embedding(scaled=True)),
    'gemma2': small(pattern=(gemma2(0), gemma2(4)), head=Head(softcap=2.0), execution=Execution(vocab_chunks=2)),
    'olmo2': small(layer=Layer(Attention(4, qk_norm=RMSNorm(), qk_norm_over='heads'), SWIGLU, residual=OutputNorm()),
                   head=Head(tied=False)),
    'neox': small(layer=Layer(Attention(4, position=Rope(fraction=0.5), bias='all'), MLP(bias=True), norm=LayerNorm(),
                              parallel=True)),
    'nope': small(layer=Layer(Attention(4, position=NoPE()), MLP(activation=Relu()), norm=LayerNorm(bias=False),
                              residual=OutputNorm())),
    'vaswani': small(layer=Layer(Attention(4, position=NoPE(), bias='qkv'), MLP(activation=Relu2()),
                                 norm=LayerNorm(1e-3), residual=PostNorm()), embedding=Embedding(Sinusoidal(100.0))),
    'alibi': small(width=24, pattern=(alibi(5), alibi(0))),
    'relative': small(layer=Layer(Attention(4, 2, position=Relative(8, 20)), norm=LayerNorm(),
                                  residual=SandwichNorm()), head=Head(tied=False)),
    'gpt_oss': small(pattern=(sinking(4), sinking(0)), head=Head(tied=False)),
    'yarn': small(layer=Layer(Attention(4, 2, 8, position=Yarn(20.0, 8.0, 12, 4.0, 0.5, growth=0.9, fraction=0.75),
                                       sink=True),
                              MLP(activation=ClampedSilu(2.0, 0.5)))),
    'plain': small(layer=Layer(Attention(4, scale=0.2, position=LongRope((1.0, 2.0), (4.0, 3.0), 20.0, 100, 1.2)),
                               norm=NoNorm())),
}


def encoder(*attention, mlp=None, layer=None, **fields):
    """Returns an Encoder of the sizes of `small`."""
    own = Layer(Attention(4, *attention, causal=False, **(layer or {}).pop('attention', {})), mlp or MLP(),
                **(layer or {}))
    return Encoder(**{'vocab': 50, 'depth': 2, 'width': 16, 'layer': own, **fields})


# Of these, future tokens matter, and no cache helps.
BIDIRECTIONAL = {
    'bert': encoder(mlp=MLP(activation=Gelu(exact=True), bias=True), layer={
        'attention': {'position': NoPE(), 'bias': 'all'}, 'norm': LayerNorm(1e-12), 'residual': PostNorm()},
        embedding=TypedEmbedding(Learned(20), norm=LayerNorm(1e-12), types=3), execution=Execution(vocab_chunks=2)),
    'modern': modern_bert(50, 4, 16, 4, ff=20, window=6),
    't5': encoder(mlp=MLP(activation=Relu()), layer={
        'attention': {'position': Relative(8, 20, causal=False)}}, embedding=Embedding(norm=RMSNorm()), head=Head()),
    'window': encoder(mlp=MLP(activation=Relu2()), layer={
        'attention': {'window': 3, 'position': Alibi()}},
        head=MaskedHead(activation=Relu(), norm=NoNorm())),
    'waves': encoder(2, mlp=MLP(activation=Silu(), gated=True), layer={
        'attention': {'position': LongRope((1.0,), (3.0,), 20.0, 4, 0.9)}, 'residual': OutputNorm()},
        embedding=TypedEmbedding(Sinusoidal(100.0), True),
        head=MaskedHead(tied=False, softcap=2.0, activation=Silu(), norm=RMSNorm(1e-3))),
    'bidirectional decoder': small(layer=Layer(Attention(4, causal=False, position=Yarn(20.0, 8.0, 12, 4.0, 0.5)),
                                               MLP(activation=ClampedSilu(2.0, 0.5), gated=True))),
}
ALL = DECODERS | BIDIRECTIONAL
OBJECTIVES = {name: NextToken() for name in ALL} | {
    'nope': NextToken(smoothing=0.1), 'vaswani': NextToken(z_loss=0.1, smoothing=0.2), 'llama': NextToken(z_loss=0.1),
    'gemma2': NextToken(smoothing=0.1)}

# Unoptimised code compiles in half the time, and at these sizes compiling is all the time there is.
jit = partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def parameters(model, seed=0):
    """Returns parameters drawn wide enough that every one of them matters, without compiling `model.init`."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name.endswith('scale'):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return (rng.standard_normal(leaf.shape) * 0.3).astype(np.float32)
    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def ahead(name_or_model, count=3):
    """Returns a MultiTokenDecoder with the fields of a Decoder."""
    model = DECODERS[name_or_model] if isinstance(name_or_model, str) else name_or_model
    return MultiTokenDecoder(**{field.name: getattr(model, field.name) for field in fields(model)},
                             ahead=count)
