"""Text to batches: `Corpus`, the sources that it reads and the tokenizers that it uses. Numpy only."""

from lm.data import cache, sources
from lm.data.corpus import Corpus
from lm.data.files import Files, PythonStdlib
from lm.data.pairs import Lines, Parallel
from lm.data.sources import Cut, Document, Mix, Pick, Reject, Source, Synthetic
from lm.data.tfds import Tfds
from lm.tokenizers import Bytes, Chars, Controls, Encoder, HuggingFace, SentencePiece, Tokenizer, Words

__all__ = ['Bytes', 'Chars', 'Controls', 'Corpus', 'Cut', 'Document', 'Encoder', 'Files', 'HuggingFace', 'Lines', 'Mix',
           'Parallel', 'Pick', 'PythonStdlib', 'Reject', 'SentencePiece', 'Source', 'Synthetic', 'Tfds', 'Tokenizer',
           'Words', 'cache', 'sources']
