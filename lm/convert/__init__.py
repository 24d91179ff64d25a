"""Weights of others in and out: Hugging Face directories and GGUF files."""
from lm.convert.start import Gguf, HuggingFace, model

__all__ = ['Gguf', 'HuggingFace', 'model']
