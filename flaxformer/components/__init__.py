"""The parts: dense layers, norms, embeddings, positions, convolutions and attention."""
