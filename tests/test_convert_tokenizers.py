"""Ids of hard strings: those of the library that each kind of tokenizer is of, from its own file and through GGUF."""
import gzip
import json

import gguf as peer
import numpy as np
import peers
import pytest
import sentencepiece
import tokenizers as library
from sentencepiece import sentencepiece_model_pb2 as protocol

from lm.convert import gguf
from lm.convert import tokenizers as converted
from lm.tokenizers import HuggingFace, SentencePiece

HARD = (
    '', ' ', '  two  spaces ', 'tabs\tand\r\nlines\n\n\nmore', "it's we'LL I'M they'd", '12345 3.14159 ١٢٣ Ⅻ ½',
    '👩‍👩‍👧‍👦 🏳️‍🌈 emoji 😀😀', '中文字符，没有空格。', '日本語のテキスト 한국어', 'שלום עולם', 'مرحبا بالعالم',
    'e\u0301 \u00e9 A\u030a Å ﬁ', 'a\u0000b\u0007c\u200bd\u202ee\ufeff', '<|endoftext|> <s> [INST]',
    'z\u0335\u0321a\u0334l\u0337g\u0336o', '\u2581mark ▁▁', 'def f(x):\n    return x ** 2  # comment\n',
    'ＦＵＬＬ　ｗｉｄｔｈ', '\U0001f468\u200d\U0001f4bb\U00020000')
LONG = 'thequickbrownfoxjumpsoverthelazydog0123456789' * (10 ** 6 // 45)  # 1 MB without a space


@pytest.fixture(params=['gpt2_tokenizer.json.gz', 'deepseek_r1_tokenizer.json.gz', 'torchtitan_test_tokenizer.json'])
def json_file(shared, request):
    return shared / 'tokenizers' / request.param


def content_of(path):
    return (gzip.decompress(path.read_bytes()) if path.suffix == '.gz' else path.read_bytes()).decode()


def same(encoder, encode, texts):
    for text in texts:
        np.testing.assert_array_equal(encoder.encode(text), encode(text), err_msg=repr(text[:60]))


def test_a_tokenizer_json_gives_the_ids_of_tokenizers(json_file, tmp_path):
    content = content_of(json_file)
    theirs = library.Tokenizer.from_str(content)
    theirs.encode_special_tokens = True  # text never is a control token here
    encoder = HuggingFace(str(json_file)).fit((), tmp_path)
    controls = ('<',) if 'titan' in json_file.name else ()  # that file calls no token special
    same(encoder, lambda text: theirs.encode(text, add_special_tokens=False).ids,
         [text for text in (*HARD, LONG) if not text.startswith(controls or '\uffff')])


@pytest.fixture(params=['mistral-v1_tokenizer.model', 'sentencepiece_test_model.model',
                        'sentencepiece_test_ja_model.model'])
def piece_file(shared, request):
    return shared / 'tokenizers' / request.param


def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(piece_file, tmp_path):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(piece_file))
    encoder = SentencePiece(model=str(piece_file)).fit((), tmp_path)
    same(encoder, theirs.encode, [text for text in (*HARD, LONG) if '\u2581' not in text])


def written(path, **values):
    """Writes a GGUF file without tensors and returns its metadata, as it is read."""
    writer = peer.GGUFWriter(path, 'llama')
    for name, value in values.items():
        getattr(writer, f'add_{name}')(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.contents(path)[0]


def test_byte_pairs_of_gguf_give_the_ids_of_the_tokenizer_json_they_were_made_of(shared, tmp_path):
    described = json.loads(content_of(shared / 'tokenizers' / 'gpt2_tokenizer.json.gz'))
    tokens = sorted(described['model']['vocab'], key=described['model']['vocab'].get)
    merges = [merge if isinstance(merge, str) else ' '.join(merge) for merge in described['model']['merges']]
    kinds = [3 if token == '<|endoftext|>' else 1 for token in tokens]
    metadata = written(tmp_path / 'gpt2.gguf', tokenizer_model='gpt2', tokenizer_pre='gpt-2', token_list=tokens,
                       token_types=kinds, token_merges=merges)
    (tmp_path / 'tokenizer.json').write_bytes(converted.of_gguf(metadata, 'gpt2.gguf')['tokenizer.json'])
    encoder = HuggingFace(str(tmp_path / 'tokenizer.json')).fit((), tmp_path / 'kept')
    theirs = library.Tokenizer.from_str(json.dumps(described))
    theirs.encode_special_tokens = True
    same(encoder, lambda text: theirs.encode(text, add_special_tokens=False).ids, (*HARD, LONG))
    assert encoder.decode(encoder.encode(HARD[3])) == HARD[3]


def test_pieces_of_gguf_give_the_ids_of_the_model_they_were_made_of(shared, tmp_path):
    file = shared / 'tokenizers' / 'mistral-v1_tokenizer.model'
    model = protocol.ModelProto.FromString(file.read_bytes())
    metadata = written(tmp_path / 'pieces.gguf', tokenizer_model='llama', bos_token_id=1, eos_token_id=2,
                       unk_token_id=0, token_list=[piece.piece for piece in model.pieces],
                       token_types=[piece.type for piece in model.pieces],
                       token_scores=[piece.score for piece in model.pieces])
    (tmp_path / 'tokenizer.model').write_bytes(converted.of_gguf(metadata, 'pieces.gguf')['tokenizer.model'])
    encoder = SentencePiece(model=str(tmp_path / 'tokenizer.model')).fit((), tmp_path / 'kept')
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(file))
    same(encoder, theirs.encode, [text for text in (*HARD, LONG) if '\u2581' not in text])
    assert (encoder.bos, encoder.eos, encoder.size) == (1, 2, theirs.vocab_size())


def test_word_pieces_of_gguf_give_the_ids_of_the_vocabulary_they_were_made_of(shared, tmp_path):
    words = (shared / 'tokenizers' / 'bert-base-uncased_vocab.txt').read_text(encoding='utf-8').splitlines()
    control = {'[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'}
    tokens = [word if word in control else word[2:] if word.startswith('##') else f'▁{word}' for word in words]
    metadata = written(tmp_path / 'bert.gguf', tokenizer_model='bert', token_list=tokens, unk_token_id=100,
                       token_types=[3 if word in control else 1 for word in words])
    (tmp_path / 'tokenizer.json').write_bytes(converted.of_gguf(metadata, 'bert.gguf')['tokenizer.json'])
    encoder = HuggingFace(str(tmp_path / 'tokenizer.json'), eos='[SEP]').fit((), tmp_path / 'kept')
    theirs = library.Tokenizer(library.models.WordPiece({word: number for number, word in enumerate(words)},
                                                        unk_token='[UNK]'))
    theirs.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    theirs.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    same(encoder, lambda text: theirs.encode(text, add_special_tokens=False).ids, (*HARD, LONG))


def test_smollm2_splits_every_digit_and_else_as_gpt2(tmp_path):
    metadata = gguf.contents(peers.file(*peers.SMOLLM2))[0]
    (tmp_path / 'tokenizer.json').write_bytes(converted.of_gguf(metadata, 'smollm2')['tokenizer.json'])
    encoder = HuggingFace(str(tmp_path / 'tokenizer.json')).fit((), tmp_path / 'kept')
    tokens, merges = metadata[converted.TOKENS], metadata['tokenizer.ggml.merges']
    theirs = library.Tokenizer(library.models.BPE(vocab={token: i for i, token in enumerate(tokens)},
                                                  merges=[tuple(merge.split(' ')) for merge in merges]))
    theirs.pre_tokenizer = library.pre_tokenizers.Sequence([
        library.pre_tokenizers.Digits(individual_digits=True),
        library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    same(encoder, lambda text: theirs.encode(text, add_special_tokens=False).ids, (*HARD, LONG))
    assert encoder.size == 49152 and encoder.encode('2026').size == 4
