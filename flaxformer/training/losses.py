"""Cross entropy with z-loss and label smoothing, and the ways to normalise it.

Glossary:

* *log-partition*: `logZ = logsumexp(logits)`, what turns logits into log-probabilities: `log p = logits - logZ`.
* *z-loss*: `z_loss · logZ²`, keeps the log-partition near 0, so that low-precision logits do not drift.
* *label smoothing*: the target keeps `c = 1 - ε` of the probability, every other token gets `low = ε / (V - 1)`.
"""

import enum
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.types import Array


@jax.custom_vjp
def cross_entropy_with_logits(
    logits: Float[Array, "*B V"], targets: Float[Array, "*B V"], z_loss: float | Array
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """Cross entropy of target distributions, plus z-loss.

    `loss = -Σ targets · log p + z`, `z = z_loss · logZ²`. The gradient is written out: it takes the targets to sum to
    one, treats `z_loss` as a constant, and ignores what flows into the second output, which is there to be logged.

    Args:
      logits: `[*B V]`.
      targets: `[*B V]`, a distribution over the vocabulary. For token ids see `compute_weighted_cross_entropy`.
      z_loss: coefficient of the z-loss.

    Returns:
      `loss [*B]` with the z-loss included, and the z-loss `[*B]` by itself.

    >>> loss, z = cross_entropy_with_logits(jnp.zeros((1, 4)), jnp.array([[0.0, 1.0, 0.0, 0.0]]), 0.0)
    >>> round(float(loss[0]), 3)  # ln 4
    1.386
    """
    return _distribution_forward(logits, targets, z_loss)[0]


def _distribution_forward(logits, targets, z_loss):
    log_partition = jax.nn.logsumexp(logits, axis=-1)
    z = z_loss * jnp.square(log_partition)
    loss = -jnp.sum(targets * (logits - log_partition[..., None]), axis=-1) + z
    return (loss, z), (logits, targets, z_loss, log_partition)


def _distribution_backward(residuals, gradients):
    logits, targets, z_loss, log_partition = residuals
    gradient, log_partition = gradients[0][..., None], log_partition[..., None]
    log_probabilities = logits - log_partition
    by_logits = gradient * ((1 + 2 * z_loss * log_partition) * jnp.exp(log_probabilities) - targets)
    by_targets = -gradient * log_probabilities
    return by_logits.astype(logits.dtype), by_targets.astype(targets.dtype), jnp.zeros_like(z_loss)


cross_entropy_with_logits.defvjp(_distribution_forward, _distribution_backward)


def token_cross_entropy(
    logits: Float[Array, "*B V"],
    targets: Int[Array, "*B"],
    *,
    label_smoothing: float = 0.0,
    z_loss: float | Array = 0.0,
) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """Cross entropy of token ids, per position, without an array of smoothed one-hot targets.

    With `x_t` the logit of the target: `loss = (c - low)·(logZ - x_t) + low·Σ(logZ - x) + z`. Only `[*B]` is kept for
    the backward pass besides the logits, and the backward pass makes one `[*B V]` array, the gradient. Sums are taken
    in float32 whatever the dtype of the logits. Ids outside the vocabulary count as no token at all.

    Args:
      logits: `[*B V]`.
      targets: `[*B]` token ids.
      label_smoothing: ε, a Python number.
      z_loss: coefficient of the z-loss; it gets no gradient.

    Returns:
      `loss [*B]` with the z-loss included, and the z-loss `[*B]` by itself, both float32.
    """
    return _token_cross_entropy(float(label_smoothing), logits, targets, z_loss)


def _smoothed(label_smoothing: float, vocabulary: int) -> tuple[float, float]:
    """Probability of the target and of each other token."""
    return 1.0 - label_smoothing, label_smoothing / max(vocabulary - 1, 1)


def _token_forward(label_smoothing, logits, targets, z_loss):
    vocabulary = logits.shape[-1]
    high, low = _smoothed(label_smoothing, vocabulary)
    log_partition = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    z = z_loss * jnp.square(log_partition)
    target_logit = jnp.take_along_axis(logits, jnp.clip(targets, 0, vocabulary - 1)[..., None], axis=-1)[..., 0]
    known = (targets >= 0) & (targets < vocabulary)
    loss = jnp.where(known, (high - low) * (log_partition - target_logit.astype(jnp.float32)), 0.0) + z
    if low:
        # Not `sum(log_partition - logits)`: the backward pass has that array too, and XLA would store it for both.
        loss += low * (vocabulary * log_partition - jnp.sum(logits, axis=-1, dtype=jnp.float32))
    return (loss, z), (logits, targets, z_loss, log_partition)


def _token_backward(label_smoothing, residuals, gradients):
    logits, targets, z_loss, log_partition = residuals
    high, low = _smoothed(label_smoothing, logits.shape[-1])
    gradient, log_partition = gradients[0][..., None], log_partition[..., None]
    softmax = jnp.exp(logits.astype(jnp.float32) - log_partition)
    hit = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
    by_logits = gradient * ((1 + 2 * z_loss * log_partition) * softmax - jnp.where(hit, high, low))
    return by_logits.astype(logits.dtype), None, jnp.zeros_like(z_loss)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_cross_entropy(label_smoothing, logits, targets, z_loss):
    return _token_forward(label_smoothing, logits, targets, z_loss)[0]


_token_cross_entropy.defvjp(_token_forward, _token_backward)


def compute_weighted_cross_entropy(
    logits: Float[Array, "*B V"],
    targets: Int[Array, "*B"],
    weights: Float[Array, "*B"] | None = None,
    label_smoothing: float = 0.0,
    z_loss: float | Array = 0.0,
    loss_normalizing_factor: float | Array | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, ""]]:
    """Weighted sum of the cross entropy over all positions.

    The entropy of the smoothed target is subtracted per position, so that a perfect prediction costs 0.

    Args:
      logits: `[*B V]`.
      targets: `[*B]` token ids.
      weights: `[*B]`; all ones when None.
      label_smoothing: ε, a Python number.
      z_loss: coefficient of the z-loss.
      loss_normalizing_factor: what the sums are divided by; nothing when None.

    Returns:
      The loss with the z-loss included, the z-loss by itself, and the sum of the weights (not normalised).

    Raises:
      ValueError: when the shape of `targets` or of `weights` is not that of `logits` without its last axis.

    Source: Szegedy et al. 2016, https://arxiv.org/abs/1512.00567 (label smoothing, there with `low = ε / V`).
    """
    _check_positions("targets", targets, logits)
    loss, z = token_cross_entropy(logits, targets, label_smoothing=label_smoothing, z_loss=z_loss)
    loss -= _smoothing_entropy(float(label_smoothing), logits.shape[-1])
    weight_sum = jnp.asarray(targets.size, jnp.float32)
    if weights is not None:
        _check_positions("weights", weights, logits)
        loss, z, weight_sum = loss * weights, z * weights, jnp.sum(weights)
    if loss_normalizing_factor is not None:
        loss, z = loss / loss_normalizing_factor, z / loss_normalizing_factor
    return jnp.sum(loss), jnp.sum(z), weight_sum


def _check_positions(name: str, x: Array, logits: Array) -> None:
    if x.shape != logits.shape[:-1]:
        raise ValueError(
            f"{name} has shape {x.shape}; expected {logits.shape[:-1]} for logits of shape {logits.shape}. "
            "Pass one value per position, token ids and not distributions."
        )


def _smoothing_entropy(label_smoothing: float, vocabulary: int) -> float:
    """The entropy of a smoothed target."""
    high, low = _smoothed(label_smoothing, vocabulary)
    return -((high * math.log(high) if high > 0 else 0.0) + (vocabulary - 1) * low * math.log(low + 1e-20))


@enum.unique
class SpecialLossNormalizingFactor(enum.Enum):
    """Normalising factors that depend on the batch."""

    NUM_REAL_TARGET_TOKENS = 1
    NUM_TOTAL_TARGET_TOKENS = 2
    AVERAGE_PER_SEQUENCE = 3


LossNormalizingFactor = float | int | str | SpecialLossNormalizingFactor | None


def convert_special_loss_normalizing_factor_to_enum(name: str) -> SpecialLossNormalizingFactor:
    """The factor called `name`, in upper or lower case.

    >>> convert_special_loss_normalizing_factor_to_enum("average_per_sequence").value
    3
    """
    try:
        return SpecialLossNormalizingFactor[name.upper()]
    except KeyError:
        names = ", ".join(factor.name for factor in SpecialLossNormalizingFactor)
        raise ValueError(
            f"loss_normalizing_factor is {name!r}; expected a number, None or one of {names}. Correct the name."
        ) from None


def get_loss_normalizing_factor_and_weights(
    loss_normalizing_factor: LossNormalizingFactor, batch: Mapping[str, Array]
) -> tuple[float | Array | None, Array | None]:
    """What to divide the loss by, and the weight of each target.

    | option                    | factor             | weights                                            |
    |---------------------------|--------------------|----------------------------------------------------|
    | None or a number          | as given           | the batch's, or None                               |
    | `NUM_REAL_TARGET_TOKENS`  | sum of the weights | the batch's; by default 1 where the target is not 0 |
    | `NUM_TOTAL_TARGET_TOKENS` | number of targets  | same                                               |
    | `AVERAGE_PER_SEQUENCE`    | sum of the weights | same, divided by their sum in the sequence         |

    Args:
      loss_normalizing_factor: see above; names in upper or lower case.
      batch: reads `decoder_target_tokens`, `decoder_loss_weights`, and for packed batches `decoder_segment_ids`.

    Returns:
      The factor, and the weights `[B T]`.
    """
    weights = batch.get("decoder_loss_weights")
    if loss_normalizing_factor is None or isinstance(loss_normalizing_factor, (int, float)):
        return loss_normalizing_factor, weights
    if isinstance(loss_normalizing_factor, str):
        loss_normalizing_factor = convert_special_loss_normalizing_factor_to_enum(loss_normalizing_factor)
    targets = batch["decoder_target_tokens"]
    weights = jnp.asarray(targets > 0 if weights is None else weights, jnp.float32)
    match loss_normalizing_factor:
        case SpecialLossNormalizingFactor.NUM_REAL_TARGET_TOKENS:
            return jnp.sum(weights), weights
        case SpecialLossNormalizingFactor.NUM_TOTAL_TARGET_TOKENS:
            return jnp.asarray(targets.size, jnp.float32), weights
    per_sequence = sum_weights_per_segment(weights, batch.get("decoder_segment_ids"))
    weights = jnp.where(per_sequence > 0, weights / jnp.where(per_sequence > 0, per_sequence, 1.0), 0.0)
    return jnp.sum(weights), weights


def sum_weights_per_segment(
    weights: Float[Array, "B T"], segment_ids: Int[Array, "B T"] | None = None
) -> Float[Array, "B _"]:
    """At each position, the sum of the weights of its packed sequence (0 for segment 0, padding).

    Without segment ids, the sum of the row.
    """
    if segment_ids is None:
        return jnp.sum(weights, axis=-1, keepdims=True)
    starts = jnp.diff(segment_ids, axis=-1, prepend=segment_ids[:, :1]) != 0
    runs = jnp.cumsum(starts, axis=-1)  # [B T], counts the sequences of a row from 0
    length = weights.shape[-1]
    sums = jax.vmap(lambda row, run: jax.ops.segment_sum(row, run, num_segments=length)[run])
    return jnp.where(segment_ids > 0, sums(weights, runs), 0.0)
