"""Small Decoders that between them turn every switch at least once, random parameters, and a cheap jit."""
from functools import partial

import jax
import numpy as np

from lm.models.decoder import Decoder
from lm.nn.positions import Alibi, Learned, NoPE, Relative, Rope, Sinusoidal

small = partial(Decoder, vocab=50, depth=2, heads=4, width=16)
DECODERS = {
    'gpt2': small(position=Learned(20), norm='layer_bias', bias='all'),
    'llama': small(kv_heads=2, activation='swiglu', tied=False, loss_parts=4),
    'llama3': small(kv_heads=1, activation='swiglu', position=Rope(base=100.0, factor=8.0, original=32)),
    'qwen3': small(kv_heads=2, head_dim=6, ff=20, activation='swiglu', qk_norm=True),
    'gemma3': small(depth=3, kv_heads=1, head_dim=8, ff=24, activation='geglu', qk_norm=True, norm_place='both',
                    scaled_embedding=True, windows=(3, 3, 0), position=Rope(100.0, 4.0, local_base=10.0)),
    'gemma2': small(kv_heads=2, activation='geglu', windows=(0, 4), attention_softcap=1.5, logit_softcap=2.0,
                    position=Rope(factor=2.0), loss_parts=2),
    'neox': small(bias='all', parallel=True, norm='layer_bias', position=Rope(fraction=0.5)),
    'nope': small(position=NoPE(), norm='layer', norm_place='post', activation='relu', smoothing=0.1),
    'sinusoidal': small(position=Sinusoidal(), parallel=True, activation='relu2', bias='qkv', z_loss=0.1,
                        smoothing=0.2),
    'alibi': small(heads=6, width=24, kv_heads=3, position=Alibi(), windows=(5, 0), attention_softcap=2.0),
    'relative': small(kv_heads=2, position=Relative(8, 20), norm='layer_bias', norm_place='both', tied=False),
}

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
