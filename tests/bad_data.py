"""Data files that are damaged, odd, or of another kind than their name says; and tokenizer files of others."""
import gzip
import json
import pathlib
import shutil
import struct

import damage
from bad_fields import BRACKETS
from bad_fields import TEXTS as WORDS
from bad_inputs import Kind, Silent
from encoders import json_file
from test_data_damage import CHECKED, LINES, TEXTS, UNCHECKED

from lm import config, data
from lm.data import cache

PLAIN = {'a.jsonl': LINES, 'a.txt': '\n'.join(TEXTS).encode(), 'a.ndjson': LINES, 'one.json': LINES,
         'a.json': json.dumps([{'text': text} for text in TEXTS]).encode()}
MAGIC = (b'PK\x03\x04', b'BZh91AY&SY', b'\xfd7zXZ\0', b'\x04\x22\x4d\x18', b'PAR1', b'ARROW1\0\0', b'Obj\x01',
         b'\x89HDF\r\n', b'\x93NUMPY', b'\x80\x04', b'GGUF\3\0\0\0', b'%PDF-1', b'\xd0\xcf\x11\xe0', b'WARC/1.0',
         b'\x1f\x8b', b'\x28\xb5\x2f\xfd', b'\xff\xfe', b'\0\0\xfe\xff', b'\x50\x2a\x4d\x18',
         b'\x1f\x8b\x08\x04\0\0\0\0\0\3\xff\xff', b'\xef\xbb\xbf', b'')
NAMES = ('o.txt', 'o.jsonl', 'o.json', 'o.parquet', 'o.txt.gz', 'o.jsonl.zst', 'o.JSON.GZ', 'o', 'o.csv', '.o.txt',
         'o.parquet.gz')
# A line of JSON lines that is bad: rejected, whatever is beside it.
BAD_LINES = (b'{', b'nothing', b'{"text": 1}', b'{"text": null}', b'{"text": ""}', b'{"text": ["a"]}', b'{"txt": "a"}',
             b'[]', b'null', b'3', b'"a"', b'{"text": "a\0b"}', b'{"text": "\\u0000"}', b'{"text": "\\ud800"}',
             b'{"text": "\xff"}', b'\xff\xfe', b'\0', b'[' * 9999, b'{"a":' * 5000, b'{"text": ' + b'9' * 5000 + b'}',
             b'{"text": NaN}', b'{"text": "a"}{"text": "b"}', b"{'text': 'a'}", b'\xef\xbb\xbf',
             b'{"text": {"text": "a"}}', b'{"text": "a"} x', b'{"text": true}', b'1' * 5000, b'{"text": "a',
             b'\x1f\x8b')
GOOD_LINES = ((b'{"text": "a", "text": "%d"}', '%d'), (b'  {"text": "%d"}  ', '%d'), (b'{"text": "%d"}\r', '%d'),
              (b'\xef\xbb\xbf{"text": "%d"}', '%d'), (b'{"text": "%d\\r\\n\\u00e9"}', '%d\r\né'),
              (b'{"x": NaN, "text": "%d"}', '%d'), (b'{"text": "%d\\ud83d\\ude00"}', '%d😀'),
              ('{"text": "%d\u2028ｘ"}'.encode(), '%d\u2028ｘ'), (b'{"text": "%d", "y": [[[[]]]]}', '%d'))
BLANK = (b'', b' ', b'\t', b'\r')


def read(path, field='text'):
    """Returns (texts, rejects) of the documents of a file."""
    records = list(data.Files(str(path), field=field).records())
    texts = [record.text for record in records if isinstance(record, data.Document)]
    for text in texts:
        text.encode()
        if not text or '\0' in text:
            raise Silent(f'a document {text!r:.50} of no text')
    return texts, [record for record in records if not isinstance(record, data.Document)]


def damaged_file(path, content, whole, checked):
    """Tries a damaged file: it gives all of its documents, or none and a reject; others only where nothing can tell."""
    path.write_bytes(content)
    texts, rejects = read(path)
    unchecked = data.Files(str(path)).unchecked()
    cache_of(path, texts, rejects)
    if texts == whole or (rejects and not texts):
        return
    if texts and not set(texts) - set(whole) and rejects:
        if checked:
            raise Silent('a part of its documents, though a checksum tells')
        return
    if checked:
        raise Silent('other documents, though a checksum tells')
    raise Silent('other documents, of a file without a checksum' + '; it is not named as such' * (
        not unchecked and path.suffix in ('.parquet', '.zst')))


def cache_of(path, texts, rejects):
    """Builds the token cache of a file, which has as many documents and rejects as were read."""
    root = path.parent / 'cache'
    shutil.rmtree(root, ignore_errors=True)
    try:
        report = cache.build(data.Files(str(path)), data.Bytes().fit((), '.'), root, workers=1).report
    except config.Error:
        if texts:
            raise
        return
    counts = report['documents'], sum(reject['count'] for reject in report['rejects'].values())
    if counts != (len(texts), len(rejects)):
        raise Silent(f'{counts} documents and rejects in the cache, {len(texts), len(rejects)} in the file')


def lines_of(rng):
    """Returns (lines of JSON, the texts that they hold, how many are rejected)."""
    lines, texts, rejected = [], [], 0
    for number in range(rng.randrange(1, 9)):
        match rng.randrange(3):
            case 0:
                lines.append(rng.choice(BAD_LINES))
                rejected += 1
            case 1:
                line, text = rng.choice(GOOD_LINES)
                lines.append(line.replace(b'%d', str(number).encode()))
                texts.append(text.replace('%d', str(number)))
            case 2:
                lines.append(rng.choice(BLANK))
    return lines, texts, rejected


def odd_lines(path, rng):
    lines, texts, rejected = lines_of(rng)
    lines = [b'{"text": "first"}', *lines]
    content = b'\n'.join(lines) + rng.choice((b'', b'\n', b'\n\n', b'\r\n'))
    path = path / rng.choice(('odd.jsonl', 'odd.jsonl.gz', 'odd.ndjson', 'odd.json', 'odd.JSONL'))

    def run():
        path.write_bytes(gzip.compress(content) if path.suffix == '.gz' else content)
        served, rejects = read(path)
        if (served, len(rejects)) != (['first', *texts], rejected):
            raise Silent(f'{len(served)} documents and {len(rejects)} rejects, not {1 + len(texts)} and {rejected}')
    return f'{path.name} {content[:200]!r}', run


def odd_content(path, rng):
    """A file of any name that begins as one of any kind, and goes on as noise, zeros, text or another file."""
    whole = {**CHECKED, **UNCHECKED, **{name: lambda c=c: c for name, c in PLAIN.items()}}
    size = rng.randrange(300)
    noise = rng.choice((
        lambda: rng.randbytes(size), lambda: bytes(size), lambda: LINES[:size],
        lambda: rng.choice(WORDS).encode('utf-8', 'surrogatepass') * 9, lambda: rng.choice(list(whole.values()))(),
        lambda: rng.choice(BRACKETS).encode(), lambda: struct.pack('<Q', rng.getrandbits(64)) + b'{"a":1}'))()
    content, path = rng.choice(MAGIC) + noise, path / rng.choice(NAMES)

    def run():
        path.write_bytes(content)
        texts, rejects = read(path)
        if not texts and not rejects and content.strip().removeprefix(b'\xef\xbb\xbf').strip():
            raise Silent('nothing, and nothing rejected')
        data.Files(str(path)).unchecked()
        cache_of(path, texts, rejects)
    return f'{path.name} {content[:60]!r} of {len(content)} bytes', run


def pattern(path, rng):
    """A glob, or a name of a field, that is bad."""
    word = rng.choice(WORDS + BRACKETS)
    if not rng.randrange(3):
        return f'field {word[:99]!r}', lambda: (path / 'f.jsonl').write_bytes(LINES) and read(path / 'f.jsonl', word)
    glob = rng.choice(('{}', '**/{}', '{}/**', '[{}', '{}]', '*{}*', 'a.txt{}', '{}://x/y', '../{}', 'file://{}'))
    glob = glob.replace('{}', word)
    return f'pattern {glob[:99]!r}', lambda: data.Files(glob).fingerprint()


def tokenizers(folder):
    """Returns {name: (content, Tokenizer of a path)} of the files of others that a tokenizer is made of."""
    texts = [document.text for document in data.Synthetic(4, 400).documents()]
    pieces = {}
    for kind in ('unigram', 'bpe'):
        data.SentencePiece(size=300, kind=kind).fit(texts, folder / kind)
        content = (folder / kind / 'sentencepiece.model').read_bytes()
        pieces[f'{kind}.model'] = content, lambda path: data.SentencePiece(model=path)
    content = pathlib.Path(json_file()).read_bytes()
    return {**pieces, 'tokenizer.json': (content, data.HuggingFace),
            'tokenizer.json.gz': (gzip.compress(content), data.HuggingFace)}


def kinds(folder, patch):
    """Returns the [Kind] of data files and of tokenizer files."""
    place = folder / 'data'
    place.mkdir()
    contents = {name: make() for name, make in {**CHECKED, **UNCHECKED}.items()} | PLAIN
    odd = {'odd lines': odd_lines, 'odd content': odd_content, 'patterns and fields': pattern}
    known = tokenizers(folder)

    def draw(name, rng):
        if name in odd:
            return odd[name](place, rng)
        words, content = rng.choice(list(damage.damaged(contents[name], rng, 9, 20)))
        whole = ['\n'.join(TEXTS)] if name == 'a.txt' else TEXTS
        return words, lambda: damaged_file(place / name, content, whole, name in CHECKED)

    def draw_tokenizer(name, rng):
        content, make = known[name]
        words, damaged = rng.choice(list(damage.damaged(content, rng, 9, 20)))

        def run():
            (place / name).write_bytes(damaged)
            shutil.rmtree(place / 'kept', ignore_errors=True)
            encoder = make(str(place / name)).fit((), place / 'kept')
            ids = encoder.encode('mavu do\né\0😀')
            if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < encoder.size:
                raise Silent(f'an id {ids.max()} of {encoder.size}')
            encoder.decode(ids)
        return words, run
    return [Kind('data files', 12, [*contents, *odd, *odd], draw), Kind('tokenizer files', 2, [*known], draw_tokenizer)]
