"""The tokenizer that came with a checkpoint: its files, or what the metadata of a GGUF file says of it."""
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from lm import config
from lm.config import files
from lm.convert import dialects
from lm.tokenizers import HuggingFace, SentencePiece

TEMPLATE, ABOUT = 'chat_template.jinja', 'tokenizer_config.json'
FORMS = {'tokenizer.json': 'tokenizer.json', 'tokenizer.model': 'sentencepiece.model'}  # there -> beside a run
FILES = (*FORMS, ABOUT, TEMPLATE)
TOKENS, TYPES = 'tokenizer.ggml.tokens', 'tokenizer.ggml.token_type'
CONTROL, USER, BYTE = 3, 4, 6  # types of tokens in GGUF, those of SentencePiece
SEPARATOR = 'seperator'  # as GGUF spells it
_WORDS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r'|[^\r\n\p{L}\p{N}]?\p{L}+|'
_REST = r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
# tokenizer.ggml.pre -> the regexes by which text is split, one after the other, before bytes become characters; '' for
# that of GPT-2, in which the pre-tokenizer of bytes itself has its own.
SPLITS = {
    'gpt-2': ('',), 'default': ('',), 'olmo': ('',), 'smollm': (r'\p{N}', ''),
    'llama-bpe': (f'{_WORDS}{_LETTERS}' + r'\p{N}{1,3}' + _REST,), 'qwen2': (f'{_WORDS}{_LETTERS}' + r'\p{N}' + _REST,)}


def of_gguf(metadata, path):
    """Returns {file name: content bytes} of the tokenizer of a GGUF file: tokenizer.json, or tokenizer.model."""
    kind = metadata.get('tokenizer.ggml.model')
    if kind == 'gpt2':
        return {'tokenizer.json': json.dumps(_byte_pairs(metadata, path), ensure_ascii=False).encode()}
    if kind == 'llama':
        return {'tokenizer.model': _pieces(metadata)}
    if kind == 'bert':
        return {'tokenizer.json': json.dumps(_word_pieces(metadata), ensure_ascii=False).encode()}
    raise config.Error(f'{path} has a tokenizer of kind {kind}; those that are read: gpt2, llama, bert.')


def _byte_pairs(metadata, path):
    """Returns the tokenizer.json, a dict, of byte-pair encoding over bytes."""
    pre = metadata.get('tokenizer.ggml.pre', 'default')
    if pre not in SPLITS:
        near = config.close(pre, list(SPLITS)) or SPLITS
        raise config.Error(f'{path} splits text as {pre!r}, which lm lacks; those that it has: {", ".join(near)}.')
    tokens, types = metadata[TOKENS], metadata[TYPES]
    splits = [{'type': 'Split', 'pattern': {'Regex': regex}, 'behavior': 'Isolated', 'invert': False}
              for regex in SPLITS[pre] if regex]
    coded = {'type': 'ByteLevel', 'add_prefix_space': metadata.get('tokenizer.ggml.add_space_prefix', False),
             'trim_offsets': True, 'use_regex': '' in SPLITS[pre]}
    composed = {'type': 'NFC'} if pre == 'qwen2' else None
    return {'version': '1.0', 'truncation': None, 'padding': None, 'added_tokens': _added(tokens, types),
            'normalizer': composed,
            'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [*splits, coded]}, 'post_processor': None,
            'decoder': {**coded, 'add_prefix_space': True, 'use_regex': True},
            'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None,
                      'end_of_word_suffix': None, 'fuse_unk': False, 'byte_fallback': False,
                      'ignore_merges': pre == 'llama-bpe',
                      'vocab': {token: number for number, token in enumerate(tokens)},
                      'merges': [merge.split(' ', 1) for merge in metadata['tokenizer.ggml.merges']]}}


def _word_pieces(metadata):
    """Returns the tokenizer.json, a dict, of WordPiece in lower case; in GGUF ▁ begins a word, in it ## goes on."""
    tokens, types = metadata[TOKENS], metadata[TYPES]
    plain = [token if kind == CONTROL else token[1:] if token.startswith('▁') else f'##{token}'
             for token, kind in zip(tokens, types, strict=True)]
    unknown = plain[metadata.get('tokenizer.ggml.unknown_token_id', 0)]
    around = [metadata.get(f'tokenizer.ggml.{kind}_token_id') for kind in ('cls', SEPARATOR)]
    return {'version': '1.0', 'truncation': None, 'padding': None,
            'post_processor': None if None in around else _framed(*((plain[number], number) for number in around)),
            'added_tokens': _added(plain, types),
            'normalizer': {'type': 'BertNormalizer', 'clean_text': True, 'handle_chinese_chars': True,
                           'strip_accents': None, 'lowercase': True},
            'pre_tokenizer': {'type': 'BertPreTokenizer'},
            'decoder': {'type': 'WordPiece', 'prefix': '##', 'cleanup': True},
            'model': {'type': 'WordPiece', 'unk_token': unknown, 'continuing_subword_prefix': '##',
                      'max_input_chars_per_word': 100, 'vocab': {token: number for number, token in enumerate(plain)}}}


def _framed(first, last):
    """Returns the post_processor of a tokenizer.json: texts begin and end with these (token, id)."""
    def control(token, kind):
        return {'SpecialToken': {'id': token, 'type_id': kind}}

    def text(name, kind):
        return [{'Sequence': {'id': name, 'type_id': kind}}, control(last[0], kind)]
    single = [control(first[0], 0), *text('A', 0)]
    return {'type': 'TemplateProcessing', 'single': single, 'pair': [*single, *text('B', 1)], 'special_tokens': {
        token: {'id': token, 'ids': [number], 'tokens': [token]} for token, number in (first, last)}}


def _added(tokens, types):
    """Returns the added_tokens of a tokenizer.json: those of types that are no plain text."""
    return [{'id': number, 'content': token, 'single_word': False, 'lstrip': False, 'rstrip': False,
             'normalized': False, 'special': kind == CONTROL}
            for number, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind in (CONTROL, USER)]


def _pieces(metadata):
    """Returns the SentencePiece model, bytes, of Llama's kind of metadata: pieces, their scores and their types."""
    from sentencepiece import sentencepiece_model_pb2 as protocol
    model = protocol.ModelProto()
    scores = metadata.get('tokenizer.ggml.scores') or [0.0] * len(metadata[TOKENS])
    for token, score, kind in zip(metadata[TOKENS], scores, metadata[TYPES],
                                  strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    spec, rules = model.trainer_spec, model.normalizer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = spec.BPE, BYTE in set(metadata[TYPES]), len(model.pieces)
    for name, key in (('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'), ('pad', 'padding')):
        number = metadata.get(f'tokenizer.ggml.{key}_token_id', -1)
        setattr(spec, f'{name}_id', number)
        if number >= 0:
            setattr(spec, f'{name}_piece', model.pieces[number].piece)
    rules.name, rules.add_dummy_prefix = 'identity', metadata.get('tokenizer.ggml.add_space_prefix', True)
    rules.remove_extra_whitespaces = metadata.get('tokenizer.ggml.remove_extra_whitespaces', False)
    rules.escape_whitespaces = True
    return model.SerializeToString()


class Kept(NamedTuple):
    """A tokenizer: its files, {name: bytes}; eos, bos, mask: tokens, '' for none; whether a text begins with bos."""

    files: dict
    eos: str = ''
    bos: str = ''
    begins: bool = False
    mask: str = ''


def about(**tokens):
    """Returns the bytes of a tokenizer_config.json that names these tokens, those that are not ''."""
    named = {name: token for name, token in tokens.items() if token}
    return (json.dumps({'tokenizer_class': 'PreTrainedTokenizerFast', **named}, indent=2) + '\n').encode()


def of(checkpoint):
    """Returns the Kept of a Checkpoint, with its chat template if any; raises config.Error where it has none."""
    if isinstance(checkpoint, dialects.File):
        metadata = checkpoint.metadata
        if TOKENS not in metadata:
            raise config.Error(f'{checkpoint.path} has no tokenizer; convert the directory that it was made from.')
        content = of_gguf(metadata, checkpoint.path)
        if template := metadata.get('tokenizer.chat_template'):
            content[TEMPLATE] = template.encode()

        def named(kind):
            number = metadata.get(f'tokenizer.ggml.{kind}_token_id', -1)
            return metadata[TOKENS][number] if 0 <= number < len(metadata[TOKENS]) else ''
        begins = metadata.get('tokenizer.ggml.add_bos_token', metadata['tokenizer.ggml.model'] in ('llama', 'bert'))
        kept = Kept(content, named('eos') or named(SEPARATOR), named('bos') or named('cls'), begins, named('mask'))
        return kept._replace(files=content | {ABOUT: about(eos_token=kept.eos, bos_token=kept.bos)})
    return _of_directory(checkpoint.path)


def _of_directory(path):
    content = {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}
    if not {'tokenizer.json', 'tokenizer.model'} & content.keys():
        raise config.Error(f'{path} has neither a tokenizer.json nor a tokenizer.model; put the one there that the '
                           'weights were trained with.')
    if 'tokenizer.json' in content:
        content.pop('tokenizer.model', None)
    settings = files.parse_json(content.get(ABOUT, b'{}'), {})

    def spelled(key):
        token = settings.get(key) or ''
        return token if isinstance(token, str) else token.get('content', '')
    bos = spelled('bos_token') or spelled('cls_token')
    framed = json.dumps(files.parse_json(content.get('tokenizer.json', b'{}'), {}).get('post_processor'))
    begins = settings.get('add_bos_token', 'tokenizer.model' in content or (bos and json.dumps(bos) in framed))
    return Kept(content, spelled('eos_token') or spelled('sep_token'), bos, bool(begins), spelled('mask_token'))


def keep(kept, directory):
    """Writes the files of a tokenizer into that directory of a run and returns the Tokenizer, read from there."""
    tokenizer, _ = _fitted(kept, directory)
    name, own = _form(kept)
    for other in kept.files.keys() - {name}:
        (directory / other).write_bytes(kept.files[other])
    field = 'file' if own == name else 'model'
    return replace(tokenizer, **{field: str((directory / own).absolute())})


def encoder(kept):
    """Returns the Encoder of a tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        return _fitted(kept, Path(folder) / 'fitted')[1]


def _form(kept):
    return next((name, own) for name, own in FORMS.items() if name in kept.files)


def _fitted(kept, directory):
    """Returns (Tokenizer, Encoder), kept in a directory."""
    name, own = _form(kept)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / name
        source.write_bytes(kept.files[name])
        tokenizer = HuggingFace(str(source), kept.eos, kept.bos) if own == name else SentencePiece(model=str(source))
        return tokenizer, tokenizer.fit((), directory)
