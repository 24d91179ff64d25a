"""GGUF files as checkpoints: their metadata as a config.json, their tensors by Hugging Face names and arrangement."""
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lm import config
from lm.convert import checkpoints, families, gguf
from lm.nn import Rope

KEYS = {'block_count': 'num_hidden_layers', 'embedding_length': 'hidden_size',
        'feed_forward_length': 'intermediate_size', 'attention.head_count': 'num_attention_heads',
        'attention.head_count_kv': 'num_key_value_heads', 'attention.key_length': 'head_dim',
        'attention.layer_norm_rms_epsilon': 'rms_norm_eps', 'context_length': 'max_position_embeddings',
        'rope.freq_base': 'rope_theta', 'attention.sliding_window': 'sliding_window', 'vocab_size': 'vocab_size',
        'attention.causal': 'is_causal',
        'attn_logit_softcapping': 'attn_logit_softcapping', 'final_logit_softcapping': 'final_logit_softcapping'}
LAYER = 'model.layers.{L}.'
TENSORS = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head',
           'attn_norm': f'{LAYER}input_layernorm', 'ffn_norm': f'{LAYER}post_attention_layernorm',
           'attn_q': f'{LAYER}self_attn.q_proj', 'attn_k': f'{LAYER}self_attn.k_proj',
           'attn_v': f'{LAYER}self_attn.v_proj', 'attn_output': f'{LAYER}self_attn.o_proj',
           'attn_q_norm': f'{LAYER}self_attn.q_norm', 'attn_k_norm': f'{LAYER}self_attn.k_norm',
           'ffn_gate': f'{LAYER}mlp.gate_proj', 'ffn_up': f'{LAYER}mlp.up_proj', 'ffn_down': f'{LAYER}mlp.down_proj'}
FREQUENCIES = 'rope_freqs.weight'
SCALING = {'factor': 'factor', 'original_context_length': 'original_max_position_embeddings',
           'yarn_beta_fast': 'beta_fast', 'yarn_beta_slow': 'beta_slow'}
# Keys behind the architecture that change what is computed and are not read -> the values at which they do not.
FIXED = {'attention.scale': (0.0,), 'attention.clamp_kqv': (0.0,), 'attention.max_alibi_bias': (0.0,),
         **dict.fromkeys(('logit_scale', 'embedding_scale', 'residual_scale', 'rope.scale_linear', 'rope.scaling.alpha',
                          'rope.scaling.attn_factor', 'rope.scaling.yarn_attn_factor'), (0.0, 1.0)),
         'rope.scaling.yarn_ext_factor': (-1.0, 1.0), 'rope.scaling.yarn_log_multiplier': (0.0,)}


class Dialect(NamedTuple):
    """How GGUF files of an architecture differ from Hugging Face's.

    keys: {key of the metadata behind 'architecture.': key of config.json}. tensors: {name without 'blk.N.': there}.
    arrange: {regex of a Hugging Face name: f(array, hf) -> array}. complete: f(hf) -> what metadata leaves unsaid.
    """

    architecture: str
    keys: dict = KEYS
    tensors: dict = TENSORS
    arrange: dict = {}  # noqa: RUF012
    complete: Callable = lambda hf: {}


def halves(key):
    """Returns f(array, hf) that undoes llama.cpp's order of each head's rows, in which the pairs of Rope lie side by
    side; key: of the number of heads.
    """
    def undo(array, hf):
        pairs = array.reshape(hf[key], -1, 2, *array.shape[1:])
        return pairs.swapaxes(1, 2).reshape(array.shape)
    return undo


ROTARY = {r'\.q_proj\.': halves('num_attention_heads'), r'\.k_proj\.': halves('num_key_value_heads')}


class File(checkpoints.Checkpoint):
    """A GGUF file; `metadata` is what it says beside its tensors."""

    def __init__(self, path):
        self.path = Path(path)
        self.metadata, stored = gguf.contents(self.path)
        known = {family.GGUF.architecture: family for family in families.known().values() if hasattr(family, 'GGUF')}
        architecture = str(self.metadata.get('general.architecture'))
        if architecture not in known:
            near = config.close(architecture, list(known)) or known
            raise config.Error(f'{path} is {architecture}, whose GGUF lm lacks; the nearest: {", ".join(near)}.')
        family = known[architecture]
        self.dialect, self.last = family.GGUF, None
        frequencies = stored.pop(FREQUENCIES, None)
        self.stored = {self.name(name): entry for name, entry in stored.items()}
        self.shapes = {name: shape for name, (shape, *_) in self.stored.items()}
        self.config = self._config(family, frequencies)
        self.shapes = {name: self._arranged_shape(name, shape) for name, shape in self.shapes.items()}

    def name(self, name):
        """Returns the Hugging Face name of a tensor; one that is not known keeps its own."""
        number = re.match(r'blk\.(\d+)\.', name)
        stem, _, ending = name[number.end() if number else 0:].rpartition('.')
        if stem not in self.dialect.tensors:
            return name
        return f'{self.dialect.tensors[stem].format(L=number and number[1])}.{ending}'

    def _config(self, family, frequencies):
        prefix, hf = f'{self.dialect.architecture}.', checkpoints.Settings()
        for key, neutral in FIXED.items():
            if (value := self.metadata.get(prefix + key, neutral[0])) not in neutral:
                raise config.Error(f'{self.path} has {prefix}{key}={value}, which lm lacks; convert the Hugging Face '
                                   'directory that it was made from.')
        hf |= {'model_type': family.MODEL_TYPE, 'architectures': [family.ARCHITECTURE], 'hidden_act': 'silu',
               'rope_theta': 10000.0, 'vocab_size': len(self.metadata.get('tokenizer.ggml.tokens', ())),
               'tie_word_embeddings': self.name('output.weight') not in self.shapes}
        hf |= {theirs: _plain(self.metadata[prefix + key]) for key, theirs in self.dialect.keys.items()
               if prefix + key in self.metadata}
        if 'num_attention_heads' in hf:
            size = hf.setdefault('head_dim', hf['hidden_size'] // hf['num_attention_heads'])
            hf.setdefault('num_key_value_heads', hf['num_attention_heads'])
            if (turning := self.metadata.get(f'{prefix}rope.dimension_count', size)) != size:
                raise config.Error(f'{self.path} turns {turning} dimensions of heads of {size}, which lm lacks for '
                                   f'{self.dialect.architecture}; convert the directory that it was made from.')
        hf |= self.dialect.complete(hf)
        kind = self.metadata.get(f'{prefix}rope.scaling.type', 'none')
        if kind != 'none':
            hf['rope_scaling'] = {'rope_type': kind, 'factor': 1.0} | {
                theirs: _plain(self.metadata[f'{prefix}rope.scaling.{key}']) for key, theirs in SCALING.items()
                if f'{prefix}rope.scaling.{key}' in self.metadata}
        if frequencies is not None:
            hf['rope_scaling'] = self._llama3(hf, gguf.dequantised(*frequencies))
        return hf

    def _llama3(self, hf, factors):
        """Returns the rope_scaling whose frequencies are divided by these factors: those of Llama 3.1 to 3.3."""
        scaling = {'factor': float(factors.max()), 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
                   'original_max_position_embeddings': 8192}
        base, size = hf['rope_theta'], 2 * len(factors)
        rope = Rope(base, scaling['factor'], scaling['original_max_position_embeddings'], 1.0, 4.0)
        if not np.allclose(Rope(base).frequencies(size) / factors, rope.frequencies(size), rtol=1e-4):
            raise config.Error(f'{self.path} has a {FREQUENCIES} that is not the scaling of Llama 3; convert the '
                               'Hugging Face directory that it was made from.')
        return {'rope_type': 'llama3', **scaling}

    def _arranged(self, name, array):
        for regex, arrange in self.dialect.arrange.items():
            if re.search(regex, name):
                array = arrange(array, self.config)
        return array

    def _arranged_shape(self, name, shape):
        try:
            return self._arranged(name, np.broadcast_to(np.int8(0), shape)).shape
        except (ValueError, LookupError):  # of a file whose sizes do not go together, which the binding tells
            return shape

    def tensor(self, name):
        if not self.last or self.last[0] != name:  # parts of one are asked for one after the other
            self.last = None
            self.last = name, self._arranged(name, gguf.dequantised(*self.stored[name]))
        return self.last[1]


def _plain(value):
    """Returns a float32 as the float that has the same shortest spelling: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value
