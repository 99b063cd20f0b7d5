"""Flax-Linen parts for encoder, decoder and encoder-decoder transformers in JAX."""

__version__ = "0.1.0"
