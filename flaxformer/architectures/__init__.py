"""Transformers assembled from the parts in `flaxformer.components`."""
