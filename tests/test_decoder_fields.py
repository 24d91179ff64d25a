"""What the decoder's fields can say: published shapes, and mistakes told in one line."""
import jax
import pytest
from architectures import small

from lm import config
from lm.models import Decoder, Embedding, Head, Layer, OutputNorm, PostNorm, SandwichNorm
from lm.nn import MLP, Attention, Execution, Gelu, LayerNorm, Learned, NoPE, RMSNorm, Rope, Silu, Sinusoidal

NORM = RMSNorm(1e-6)


def llama(*attention, ff, position, **fields):
    return Layer(Attention(*attention, position=position), MLP(ff, Silu(), gated=True), **fields)


def gemma3(window, position):
    return Layer(Attention(4, 1, 256, window=window, position=position, qk_norm=NORM), MLP(6912, Gelu(), gated=True),
                 norm=NORM, residual=SandwichNorm())


PUBLISHED = {
    'gpt2_124m': (124_439_808, Decoder(
        50257, 12, 768, Layer(Attention(12, position=NoPE(), bias='all'), MLP(bias=True), norm=LayerNorm()),
        embedding=Embedding(Learned(1024)))),
    'llama_3.2_1b': (1_235_814_400, Decoder(
        128256, 16, 2048, llama(32, 8, ff=8192, position=Rope(500_000.0, 32.0, 8192)))),
    'qwen3_0.6b': (596_049_920, Decoder(
        151936, 28, 1024, Layer(Attention(16, 8, 128, position=Rope(1_000_000.0), qk_norm=NORM),
                                MLP(3072, Silu(), gated=True), norm=NORM))),
    'gemma_3_1b': (999_885_952, Decoder(
        262144, 26, 1152, pattern=(*[gemma3(512, Rope(10_000.0))] * 5, gemma3(0, Rope(1_000_000.0))),
        embedding=Embedding(scaled=True))),
    'olmo2_1b': (1_484_916_736, Decoder(
        100352, 16, 2048, Layer(Attention(16, position=Rope(500_000.0), qk_norm=NORM, qk_norm_over='heads'),
                                MLP(8192, Silu(), gated=True), norm=NORM, residual=OutputNorm()),
        head=Head(tied=False))),
}


@pytest.mark.parametrize('count, model', PUBLISHED.values(), ids=PUBLISHED)
def test_published_parameter_counts(count, model):
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    padding = -model.vocab % 128 * model.width
    assert sum(leaf.size for leaf in shapes) == count + padding


def attention(*args, **fields):
    return {'layer': Layer(Attention(*args, **fields))}


@pytest.mark.parametrize('build, words', [
    (lambda: small(width=250, **attention(8)), ['width=250', 'heads=8', 'try width=248']),
    (lambda: small(width=3, **attention(8)), ['width=3', 'heads=8', 'try width=8']),
    (lambda: Attention(6, 4), ['kv_heads=4', 'heads=6', 'try kv_heads=3']),
    (lambda: Attention(4, 8), ['kv_heads=8', 'heads=4', 'try kv_heads=4']),
    (lambda: small(**attention(4, head_dim=5)), ['head_dim=5', 'Rope', 'try head_dim=6']),
    (lambda: small(width=20), ['head_dim=5', 'Rope', 'try head_dim=6']),
    (lambda: small(pattern=(Layer(Attention(4)), Layer(Attention(4, head_dim=5)))), ['head_dim=5', 'try head_dim=6']),
    (lambda: small(vocab=0), ['vocab=0', 'try vocab=1']),
    (lambda: small(depth=0), ['depth=0', 'try depth=6']),
    (lambda: small(width=0), ['width=0', 'try width=384']),
    (lambda: Attention(0), ['heads=0', 'try heads=6']),
    (lambda: Attention(4, -2), ['kv_heads=-2', 'try kv_heads=0']),
    (lambda: Attention(4, head_dim=-4), ['head_dim=-4', 'try head_dim=0']),
    (lambda: Attention(4, window=-1), ['window=-1', 'try window=0']),
    (lambda: MLP(-1), ['ff=-1', 'try ff=0']),
    (lambda: small(width=15, layer=Layer(Attention(3, position=NoPE())), embedding=Embedding(Sinusoidal())),
     ['width=15', 'Sinusoidal', 'try width=16']),
    (lambda: small(execution=Execution(vocab_chunks=7)), ['vocab_chunks=7', '128 rows', 'try vocab_chunks=4']),
    (lambda: Layer(dropout=1.0), ['dropout=1.0', '[0, 1)', 'try dropout']),
    (lambda: Embedding(dropout=-0.1), ['dropout=-0.1', '[0, 1)', 'try dropout']),
    (lambda: Layer(residual=PostNorm(), parallel=True), ['parallel=true', 'try residual=PreNorm']),
    (lambda: Layer(cross=Attention(4), parallel=True), ['parallel=true', 'cross attention', 'parallel=false']),
    (lambda: small(layer=Layer(Attention(2)), pattern=(Layer(),)), ['layer', 'pattern', 'set model.pattern.0']),
])
def test_bad_fields_are_one_clear_line(build, words):
    with pytest.raises(config.Error) as caught:
        build()
    assert '\n' not in str(caught.value)
    assert all(word in str(caught.value) for word in words)
