"""Sharding of activations by number of partitioned axes, as configurations older than logical axis rules ask for.

New code names axes instead: `flax.linen.partitioning.with_sharding_constraint(x, ("batch", "length", "embed"))`.
"""

import functools
import logging
from collections.abc import Sequence

import jax
from flax.core.meta import global_mesh_defined
from flax.linen import partitioning as flax_partitioning

from flaxformer.types import Array

__all__ = ["global_mesh_defined", "with_sharding", "with_sharding_migration"]

_SPECS = {
    (2, 3): ("data", None, "model"),
    (2, 4): ("data", None, "model", None),
}


def with_sharding(x: Array, partitioning_dims: int) -> Array:
    """Shards `x` over the mesh axes `data` (1), or `data` and `model` (2); identity on CPU or without a mesh.

    Args:
      x: activations; of rank 3 or 4 for two partitioned axes.
      partitioning_dims: how many axes to partition.

    Raises:
      ValueError: for other ranks or numbers of axes, on a mesh.
    """
    if jax.default_backend() == "cpu" or not global_mesh_defined():
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(*_spec(x.ndim, partitioning_dims)))


def _spec(rank: int, partitioning_dims: int) -> tuple[str | None, ...]:
    if partitioning_dims == 1:
        return ("data",)
    if partitioning_dims != 2:
        raise ValueError(
            f"activation partitioning over {partitioning_dims} axes was asked for; expected 1 or 2. "
            "Set activation_partitioning_dims=None and logical axis rules instead."
        )
    if (2, rank) not in _SPECS:
        raise ValueError(
            f"activations of rank {rank} cannot be partitioned over 2 axes; expected rank 3 or 4. "
            "Set activation_partitioning_dims=None and logical axis rules instead."
        )
    return _SPECS[2, rank]


@functools.cache
def _log_deprecation() -> None:
    # Once and quietly: 1 is the default of every layer, so this says nothing about what the user wrote.
    logging.getLogger(__name__).info(
        "activation_partitioning_dims is deprecated: set it to None and use logical axis rules."
    )


def with_sharding_migration(
    x: Array, activation_partitioning_dims: int | None, logical_axis_names: Sequence[str]
) -> Array:
    """Shards `x` by logical axis names, or as `activation_partitioning_dims` says where there are no axis rules.

    Args:
      x: activations.
      activation_partitioning_dims: None, or the legacy number of partitioned axes.
      logical_axis_names: one per axis of `x`.

    Raises:
      ValueError: when axis rules are set and the legacy number asks for something they may contradict.
    """
    if activation_partitioning_dims is None:
        return flax_partitioning.with_sharding_constraint(x, logical_axis_names)  # pyright: ignore
    _log_deprecation()
    if not flax_partitioning.get_axis_rules():  # pyright: ignore
        return with_sharding(x, activation_partitioning_dims)
    if activation_partitioning_dims != 1:
        raise ValueError(
            f"logical axis rules are set and activation_partitioning_dims is {activation_partitioning_dims}; "
            "expected None or 1 when both are present. Set activation_partitioning_dims=None."
        )
    return flax_partitioning.with_sharding_constraint(x, logical_axis_names)  # pyright: ignore
