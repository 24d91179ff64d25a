"""Checkpoints of others made of our toy models: Hugging Face directories, and GGUF files by the package `gguf`."""
import json

import architectures
import gguf as peer
import numpy as np

from lm import trees
from lm.convert import exports, families, tables

BYTE_PAIRS = ('<|endoftext|>', *'abcdefghij', 'Ġ', 'Ġa', 'bc', 'abc')  # of a tokenizer as small as the models
MERGES = (('Ġ', 'a'), ('b', 'c'), ('a', 'bc'))


def directory(path, model, seed=0):
    """Writes a Hugging Face directory of a model with random parameters; returns them."""
    params = architectures.parameters(model, seed)
    family, hf = families.fitting(model)
    path.mkdir(parents=True)
    exports.write(path, tables.Binding(model, family.TABLE), leaves(params))
    exports.write_config(path, family, hf, context=20)
    (path / 'tokenizer.json').write_text(json.dumps(tokenizer()))
    return params


def leaves(params):
    """Returns leaf(path) of parameters in memory, as exports.write takes it."""
    known = trees.flatten(params)
    return lambda path: exports.Loaded(known[path])


def tokenizer():
    """Returns the tokenizer.json of BYTE_PAIRS, a dict."""
    level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': True}
    return {'version': '1.0', 'added_tokens': [
        {'id': 0, 'content': BYTE_PAIRS[0], 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False,
         'special': True}], 'pre_tokenizer': level, 'decoder': level, 'model': {
             'type': 'BPE', 'vocab': {token: number for number, token in enumerate(BYTE_PAIRS)},
             'merges': [list(merge) for merge in MERGES]}}


def gguf_file(path, model, kind='F32', seed=0):
    """Writes a GGUF file of a model with random parameters as llama.cpp's converter would; returns them.

    Names are those of the package; kind: of matrices whose rows are whole blocks. Norms of Gemma have 1 added, rows of
    Llama's queries and keys are interleaved, GPT-2's matrices transposed.
    """
    params = architectures.parameters(model, seed)
    family, hf = families.fitting(model)
    name = family.GGUF.architecture
    architecture = next(key for key, value in peer.MODEL_ARCH_NAMES.items() if value == name)
    names = peer.get_tensor_name_map(architecture, model.depth)
    writer = peer.GGUFWriter(path, name)
    _metadata(writer, name, model, hf)
    binding = tables.Binding(model, family.TABLE)
    for theirs, array in exports.theirs(binding, leaves(params)):
        array = _arranged(name, theirs, array, hf)
        chosen = peer.GGMLQuantizationType[kind if array.ndim > 1 and array.shape[-1] % 32 == 0 else 'F32']
        data = array if chosen.name == 'F32' else peer.quants.quantize(array, chosen)
        writer.add_tensor(names.get_name(theirs, ('.weight', '.bias')), data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return params


def _metadata(writer, name, model, hf):
    layer = model.layers[0]
    writer.add_block_count(model.depth)
    writer.add_embedding_length(model.width)
    writer.add_context_length(20)
    writer.add_feed_forward_length(layer.mlp.hidden(model.width))
    writer.add_head_count(layer.attention.heads)
    writer.add_head_count_kv(layer.attention.num_kv_heads)
    if name == 'gpt2':
        writer.add_layer_norm_eps(layer.norm.epsilon)
    else:
        writer.add_layer_norm_rms_eps(layer.norm.epsilon)
        writer.add_key_length(layer.attention.head_size(model.width))
        parameters = hf['rope_parameters'].get('full_attention', hf['rope_parameters'])
        writer.add_rope_freq_base(parameters['rope_theta'])
        if parameters['rope_type'] == 'linear':
            writer.add_rope_scaling_type(peer.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(parameters['factor'])
    if hf.get('sliding_window'):
        writer.add_sliding_window(hf['sliding_window'])
    for key in ('attn_logit_softcapping', 'final_logit_softcapping'):
        if hf.get(key):
            getattr(writer, f'add_{key}')(hf[key])
    tokens = [*BYTE_PAIRS, *(f'<unused{number}>' for number in range(model.vocab - len(BYTE_PAIRS)))]
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre('gpt-2')
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(BYTE_PAIRS) - 1), *[5] * (model.vocab - len(BYTE_PAIRS))])
    writer.add_token_merges([' '.join(merge) for merge in MERGES])
    writer.add_eos_token_id(0)
    writer.add_chat_template('{{ messages }}')


def _arranged(name, theirs, array, hf):
    if name == 'llama' and ('q_proj' in theirs or 'k_proj' in theirs):
        heads = hf['num_attention_heads' if 'q_proj' in theirs else 'num_key_value_heads']
        half = array.shape[0] // heads // 2
        rows = [head * 2 * half + i + side * half for head in range(heads) for i in range(half) for side in (0, 1)]
        return array[rows]
    if name.startswith('gemma') and theirs.endswith('norm.weight'):
        return array + 1
    if name == 'gpt2' and theirs.endswith(('c_attn.weight', 'c_proj.weight', 'c_fc.weight')):
        return np.ascontiguousarray(array.T)
    return array
