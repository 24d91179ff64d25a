"""The lab bench for language-model research in JAX."""

__version__ = '0.1.0'
