"""Data: examples in, batches with T5X's feature names out."""
