"""Text to token ids and back, one frozen dataclass a tokenizer. Numpy only."""
from lm.tokenizers.controls import Controls
from lm.tokenizers.huggingface import HuggingFace
from lm.tokenizers.plain import Bytes, Chars, Encoder, Tokenizer, Words
from lm.tokenizers.sentencepiece import SentencePiece

__all__ = ['Bytes', 'Chars', 'Controls', 'Encoder', 'HuggingFace', 'SentencePiece', 'Tokenizer', 'Words']
