"""Connectionist temporal classification: labels for a sequence of frames, without saying which frame has which."""

from __future__ import annotations

import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Int

from flaxformer.types import Array


def ctc_loss(
    logits: Float[Array, "B T V"],
    labels: Int[Array, "B L"],
    *,
    valid: Bool[Array, "B T"] | None = None,
    label_valid: Bool[Array, "B L"] | None = None,
    blank_id: int = 0,
) -> Float[Array, " B"]:
    """`-log p(labels)` of every row: over all ways to lay the labels on the frames, with repeats and blanks between.

    The sum over rows is what published wav2vec 2.0 models were trained with, or the mean of `loss / number of labels`.

    Args:
      logits: scores of the labels and the blank at every frame.
      labels: what was said; negative entries are padding, on the right.
      valid: which frames are real, on the left; all of them when None.
      label_valid: which labels are real, instead of those that are not negative.
      blank_id: the id of the blank.

    Raises:
      ValueError: for shapes that do not fit.

    >>> logits = jnp.log(jnp.array([[[0.5, 0.5], [0.5, 0.5]]]))
    >>> round(float(jnp.exp(-ctc_loss(logits, jnp.array([[1]])))[0]), 3)  # (1, 1), (1, blank) or (blank, 1) out of 4
    0.75

    Source: Graves et al. 2006, "Connectionist Temporal Classification".
    """
    if logits.ndim != 3 or labels.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"logits have shape {logits.shape} and labels {labels.shape}; expected [batch, frames, vocabulary] and "
            "[batch, labels]."
        )
    frames = jnp.ones(logits.shape[:2], bool) if valid is None else valid
    real = labels >= 0 if label_valid is None else label_valid
    return optax.ctc_loss(
        logits, ~(frames > 0), jnp.where(real, labels, blank_id), (~(real > 0)).astype(logits.dtype), blank_id=blank_id
    )


def best_labels(
    logits: Float[Array, "B T V"], *, valid: Bool[Array, "B T"] | None = None, blank_id: int = 0
) -> tuple[Int[Array, "B T"], Int[Array, " B"]]:
    """The labels of the best way through the frames: the best of each, without repeats and blanks.

    Args:
      logits: scores of the labels and the blank at every frame.
      valid: which frames are real, on the left; all of them when None.
      blank_id: the id of the blank, which also pads the result.

    Returns:
      The labels of every row, and how many they are.

    >>> scores = jnp.eye(4)[jnp.array([[3, 3, 0, 3, 2, 0]])]
    >>> labels, lengths = best_labels(scores)
    >>> labels[0, :3].tolist(), int(lengths[0])
    ([3, 3, 2], 3)

    Source: Graves et al. 2006, "Connectionist Temporal Classification", section 3.2.
    """
    best = jnp.argmax(logits, axis=-1)
    before = jnp.pad(best, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]
    kept = (best != blank_id) & (best != before)
    if valid is not None:
        kept &= valid > 0
    order = jnp.argsort(~kept, axis=1, stable=True)
    return jnp.take_along_axis(jnp.where(kept, best, blank_id), order, axis=1), jnp.sum(kept, axis=1)
