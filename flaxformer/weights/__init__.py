"""Weights from elsewhere: T5X checkpoints in all their forms, and what they can be turned into."""
