"""Metrics that can be merged over batches, and the ones that T5X's models report.

A metric holds sums; `merge` adds two of them, `compute` gives the number. Rates over time wait for the loop to tell
them how long things took (`with_duration`).
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from flaxformer.decoding.logits import argmax
from flaxformer.types import Array

Number = Array | float | int


class Sum(flax.struct.PyTreeNode):
    """A sum.

    >>> int(Sum(2).merge(Sum(3)).compute())
    5
    """

    total: Number

    def merge(self, other: Sum) -> Sum:
        return Sum(self.total + other.total)

    def compute(self) -> Number:
        return self.total


class Average(flax.struct.PyTreeNode):
    """A weighted mean: `total / count`, 0 for nothing counted."""

    total: Number
    count: Number = 1

    def merge(self, other: Average) -> Average:
        return Average(self.total + other.total, self.count + other.count)

    def compute(self) -> Number:
        return jnp.where(self.count == 0, 0.0, self.total / jnp.where(self.count == 0, 1, self.count))


class Rate(flax.struct.PyTreeNode):
    """`numerator` per second, or the seconds themselves if `inverse`.

    Attributes:
      numerator: what was done.
      duration: seconds; None until `with_duration`.
      inverse: report the duration (static).
    """

    numerator: Number
    duration: Number | None = None
    inverse: bool = flax.struct.field(pytree_node=False, default=False)

    def with_duration(self, seconds: float) -> Rate:
        return self.replace(duration=seconds)

    def merge(self, other: Rate) -> Rate:
        known = [x.duration for x in (self, other) if x.duration is not None]
        return self.replace(numerator=self.numerator + other.numerator, duration=sum(known) if known else None)

    def compute(self) -> Number:
        if self.duration is None:
            raise ValueError("a rate has no duration yet; expected seconds. Call with_duration after the timed steps.")
        return self.duration if self.inverse else self.numerator / self.duration


Metric = Sum | Average | Rate


def base_metrics(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"] | None,
    loss: Float[Array, ""],
    z_loss: Float[Array, ""],
    batch: Mapping[str, Array],
) -> dict[str, Metric]:
    """The metrics of one forward pass, under T5X's names.

    Args:
      logits: of the pass.
      targets: what was to be predicted.
      weights: what each target counts; all alike when None.
      loss: with the z-loss.
      z_loss: its part in it.
      batch: for the share of padding.
    """
    rows, everything, cores = len(targets), targets.size, jax.device_count()
    weights = jnp.ones(targets.shape) if weights is None else weights
    counted = jnp.sum(weights)
    return {
        "accuracy": Average(jnp.sum((argmax(logits) == targets) * weights), counted),
        "loss": Average(loss),
        "loss_per_nonpadding_target_token": Average(loss, counted),
        "loss_per_all_target_tokens": Average(loss, everything),
        "z_loss": Average(z_loss),
        "z_loss_per_all_target_tokens": Average(z_loss, everything),
        "cross_ent_loss": Average(loss - z_loss),
        "cross_ent_loss_per_all_target_tokens": Average(loss - z_loss, everything),
        "timing/seqs_per_second": Rate(rows),
        "timing/steps_per_second": Rate(1),
        "timing/seconds": Rate(1, inverse=True),
        "timing/seqs": Sum(rows),
        "timing/seqs_per_second_per_core": Rate(rows / cores),
        "timing/target_tokens_per_second": Rate(everything),
        "timing/target_tokens_per_second_per_core": Rate(everything / cores),
        "non_padding_fraction/loss_weights": Average(counted, everything),
    } | _padding_metrics(batch)


def _padding_metrics(batch: Mapping[str, Array]) -> dict[str, Metric]:
    """How much of the batch is padding, and how many examples it packs."""
    suffix = "_segment_ids"
    segments = {name.removesuffix(suffix): x for name, x in batch.items() if name.endswith(suffix)}
    if not segments:
        names = ("encoder_input_tokens", "decoder_target_tokens")
        segments = {name: (batch[name] != 0).astype(jnp.int32) for name in names if name in batch}
    metrics: dict[str, Metric] = {}
    overall = Average(0, 0)
    for name, ids in segments.items():
        share = Average(jnp.sum(ids != 0), ids.size)
        examples = jnp.sum(jnp.diff(ids, axis=1) != 0) + len(ids) - jnp.sum(ids[:, -1] == 0)
        metrics[f"non_padding_fraction/{name}"] = share
        metrics[f"effective_batch_size/{name}"] = Average(examples)
        overall = overall.merge(share)
    return metrics | {"non_padding_fraction/overall": overall}
