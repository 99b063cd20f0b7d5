"""One step of training or evaluation, as pure functions for any loop.

    train_step = jax.jit(make_train_step(model.apply, optimizer), donate_argnums=0)
    for batch in batches:
        state, metrics = train_step(state, batch)

Metrics are float32 scalars, means over the weighted targets of the batch:

* `loss`: cross entropy and z-loss per target, whatever `loss_normalizing_factor` does to the loss that is minimised.
* `z_loss`: its part in `loss`.
* `accuracy`: share of targets that no other token beats. (Ties count as right, which spares an argmax: on a CPU that
  took 130 times as long as the maximum, which the loss needs anyway.)
* `weight_sum`: the sum of the weights. Means over several batches are means weighted by it.
* `tokens`: tokens that are not padding, in the encoder's inputs and the decoder's targets together.
* `gradient_norm`: of all gradients together, before clipping (training only).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Key

from flaxformer.training import losses
from flaxformer.training.batches import Batch, count_tokens, forward
from flaxformer.training.state import TrainState
from flaxformer.types import Array

Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is minimised.

    Attributes:
      label_smoothing: probability taken from the target and shared among the other tokens.
      z_loss: coefficient of the squared log-partition; T5 takes 1e-4.
      loss_normalizing_factor: what the sum over the batch is divided by: see
        `losses.get_loss_normalizing_factor_and_weights`. None, T5X's default, is a plain sum.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    loss_normalizing_factor: losses.LossNormalizingFactor = "NUM_REAL_TARGET_TOKENS"


MEAN_CROSS_ENTROPY = LossConfig()


def loss_fn(
    apply: Callable[..., Any], params: Any, batch: Batch, dropout_key: Key[Array, ""] | None, config: LossConfig
) -> tuple[Float[Array, ""], Metrics]:
    """The loss of one batch, and its metrics.

    Args:
      apply: a model's `apply`; its features are passed as `batches.module_inputs` says.
      params: the model's parameters.
      batch: feature name -> array.
      dropout_key: None switches dropout off.
      config: what is minimised.

    Returns:
      The loss and the metrics listed at the top of this file.
    """
    logits, targets = forward(apply, params, batch, dropout_key), batch["decoder_target_tokens"]
    factor, weights = losses.get_loss_normalizing_factor_and_weights(config.loss_normalizing_factor, batch)
    loss, z_loss, weight_sum = losses.compute_weighted_cross_entropy(
        logits, targets, weights, config.label_smoothing, config.z_loss
    )
    count = jnp.maximum(weight_sum, jnp.finfo(jnp.float32).tiny)  # a batch without targets has the loss 0
    metrics = {
        "loss": loss / count,
        "z_loss": z_loss / count,
        "accuracy": _hits(logits, targets, weights) / count,
        "weight_sum": weight_sum,
        "tokens": count_tokens(batch),
    }
    metrics = {name: jnp.asarray(jax.lax.stop_gradient(value), jnp.float32) for name, value in metrics.items()}
    if factor is None:
        return loss, metrics
    return loss / jnp.where(factor == 0, 1.0, factor), metrics


def _hits(logits: Float[Array, "B T V"], targets: Array, weights: Array | None) -> Float[Array, ""]:
    known = jnp.clip(targets, 0, logits.shape[-1] - 1)[..., None]
    hits = jnp.take_along_axis(logits, known, axis=-1)[..., 0] >= jnp.max(logits, axis=-1)
    return jnp.sum(hits if weights is None else hits * weights)


def make_train_step(
    apply: Callable[..., Any], optimizer: optax.GradientTransformation, config: LossConfig = MEAN_CROSS_ENTROPY
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A function `(state, batch) -> (state, metrics)` that does one step of gradient descent.

    Args:
      apply: a model's `apply`.
      optimizer: the transformation that made `state.opt_state`.
      config: what is minimised.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        dropout_key = jax.random.fold_in(state.dropout_key, state.step)

        def loss_of(params: Any) -> tuple[Array, Metrics]:
            return loss_fn(apply, params, batch, dropout_key, config)

        gradients, metrics = jax.grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), metrics

    return train_step


def make_eval_step(
    apply: Callable[..., Any], config: LossConfig = MEAN_CROSS_ENTROPY
) -> Callable[[Any, Batch], Metrics]:
    """A function `(params, batch) -> metrics`, without dropout.

    Args:
      apply: a model's `apply`.
      config: as in training.
    """
    return lambda params, batch: loss_fn(apply, params, batch, None, config)[1]


def mean_metrics(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The metrics of several batches as those of one: means weighted by `weight_sum`, sums of counts.

    >>> mean_metrics([{"loss": 1.0, "weight_sum": 1.0}, {"loss": 2.0, "weight_sum": 3.0}])
    {'loss': 1.75, 'weight_sum': 4.0}
    """
    totals = ("weight_sum", "tokens")
    weight_sum = sum(float(each["weight_sum"]) for each in metrics)
    summary = {}
    for name in metrics[0]:
        if name in totals:
            summary[name] = sum(float(each[name]) for each in metrics)
        else:
            weighted = sum(float(each[name]) * float(each["weight_sum"]) for each in metrics)
            summary[name] = weighted / max(weight_sum, 1e-30)
    return summary
