"""Losses, schedules, optimizers, train and eval steps, checkpoints and the runner that joins them.

Every part works alone: the losses and steps are pure functions for anybody's loop, the optimizers are optax
transformations, and `runner.train` is one loop made from them.
"""
