"""What the decoder's fields can say: published shapes, and mistakes told in one line."""
import jax
import pytest
from architectures import small

from lm import config
from lm.models.decoder import Decoder
from lm.nn import positions as schemes

PUBLISHED = {
    'gpt2_124m': (124_439_808, 50257, Decoder(
        vocab=50257, depth=12, heads=12, width=768, position=schemes.Learned(1024), norm='layer_bias', bias='all')),
    'llama_3.2_1b': (1_235_814_400, 128256, Decoder(
        vocab=128256, depth=16, heads=32, width=2048, kv_heads=8, ff=8192, activation='swiglu',
        position=schemes.Rope(500_000.0, 32.0, 8192))),
    'qwen3_0.6b': (596_049_920, 151936, Decoder(
        vocab=151936, depth=28, heads=16, width=1024, kv_heads=8, head_dim=128, ff=3072, activation='swiglu',
        qk_norm=True, position=schemes.Rope(1_000_000.0), norm_epsilon=1e-6)),
    'gemma_3_1b': (999_885_952, 262144, Decoder(
        vocab=262144, depth=26, heads=4, width=1152, kv_heads=1, head_dim=256, ff=6912, activation='geglu',
        qk_norm=True, norm_place='both', scaled_embedding=True, windows=(512,) * 5 + (0,), norm_epsilon=1e-6,
        position=schemes.Rope(1_000_000.0, local_base=10_000.0))),
}


@pytest.mark.parametrize('count, vocab, model', PUBLISHED.values(), ids=PUBLISHED)
def test_published_parameter_counts(count, vocab, model):
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    padding = -vocab % 128 * model.width
    assert sum(leaf.size for leaf in shapes) == count + padding


@pytest.mark.parametrize('fields, words', [
    ({'width': 250, 'heads': 8}, ['width=250', 'heads=8', 'try width=248']),
    ({'width': 3, 'heads': 8}, ['width=3', 'heads=8', 'try width=8']),
    ({'heads': 6, 'kv_heads': 4, 'width': 24}, ['kv_heads=4', 'heads=6', 'try kv_heads=3']),
    ({'heads': 4, 'kv_heads': 8}, ['kv_heads=8', 'heads=4', 'try kv_heads=4']),
    ({'head_dim': 5}, ['head_dim=5', 'Rope', 'try head_dim=6']),
    ({'width': 20, 'heads': 4}, ['head_dim=5', 'Rope', 'try head_dim=6']),
    ({'vocab': 0}, ['vocab=0', 'try vocab=1']),
    ({'depth': 0}, ['depth=0', 'try depth=1']),
    ({'heads': 0}, ['heads=0', 'try heads=1']),
    ({'kv_heads': -2}, ['kv_heads=-2', 'try kv_heads=0']),
    ({'ff': -1}, ['ff=-1', 'try ff=0']),
    ({'head_dim': -4}, ['head_dim=-4', 'try head_dim=0']),
    ({'windows': ()}, ['windows=()', 'try windows=(0,)']),
    ({'windows': (4, -1)}, ['windows=(4, -1)', 'try windows=(0,)']),
    ({'width': 15, 'heads': 3, 'position': schemes.Sinusoidal()}, ['width=15', 'Sinusoidal', 'try width=16']),
    ({'loss_parts': 7}, ['loss_parts=7', '128 rows', 'try loss_parts=4']),
    ({'dropout': 1.0}, ['dropout=1.0', '[0, 1)', 'try dropout']),
    ({'dropout': -0.1}, ['dropout=-0.1', '[0, 1)', 'try dropout']),
])
def test_bad_fields_are_one_clear_line(fields, words):
    with pytest.raises(config.Error) as caught:
        small(**fields)
    assert '\n' not in str(caught.value)
    assert all(word in str(caught.value) for word in words)
