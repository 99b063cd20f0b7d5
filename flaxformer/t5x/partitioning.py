"""`t5x.partitioning`: logical axis names and the mesh they are laid over."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from flax.linen import partitioning as flax_partitioning

from flaxformer import sharding

Rules = list[tuple[str, str | None]]


def standard_logical_axis_rules(
    activation_partitioning_dims: int = 1,
    parameter_partitioning_dims: int = 1,
    additional_rules: Sequence[tuple[str, str | None]] | None = None,
) -> Rules:
    """Which mesh axis, `data` or `model`, each logical axis is split over; earlier rules claim a mesh axis first.

    Args:
      activation_partitioning_dims: 2 also splits the width of activations over `model`.
      parameter_partitioning_dims: 2 also splits the width of parameters over `data`.
      additional_rules: appended.

    Raises:
      ValueError: for other numbers than 1 and 2.

    >>> standard_logical_axis_rules()[:3]
    [('batch', 'data'), ('vocab', 'model'), ('embed', None)]
    """
    widths = {(1, 1): (None,), (2, 1): ("model",), (1, 2): ("data",), (2, 2): ("model", "data")}
    dims = activation_partitioning_dims, parameter_partitioning_dims
    if dims not in widths:
        raise ValueError(
            f"activation_partitioning_dims is {dims[0]} and parameter_partitioning_dims {dims[1]}; expected 1 or 2."
        )
    embed: Rules = [("embed", place) for place in widths[dims]]
    split: Rules = [("mlp", "model"), ("heads", "model"), ("kv", None), ("joined_kv", "model")]
    whole = ("relpos_buckets", "abspos_buckets", "length", "layers", "stack", "mlp_activations")
    first: Rules = [("batch", "data"), ("vocab", "model")]
    ordered = first + embed + split if dims == (1, 1) else first + split + embed
    return [*ordered, *((name, None) for name in whole), *(additional_rules or ())]


@dataclasses.dataclass(frozen=True)
class PjitPartitioner:
    """A mesh of shape (devices / num_partitions, num_partitions) with the axes `data` and `model`.

    Attributes:
      num_partitions: devices that share one copy of the model; 1 when neither this nor the next is given.
      model_parallel_submesh: of T5X's for TPUs; its product counts.
      params_on_devices, backend, ici_mesh_shape, dcn_mesh_shape: accepted and unused.
      logical_axis_rules: see `standard_logical_axis_rules`.
    """

    num_partitions: int | None = None
    model_parallel_submesh: Sequence[int] | None = None
    params_on_devices: bool = True
    backend: str | None = None
    ici_mesh_shape: Any = None
    dcn_mesh_shape: Any = None
    logical_axis_rules: Sequence[tuple[str, str | None]] | None = None

    @property
    def partitions(self) -> int:
        """Devices that share one copy of the model.

        Raises:
          ValueError: when the two arguments disagree, or do not divide the number of devices.
        """
        submesh = None if self.model_parallel_submesh is None else math.prod(self.model_parallel_submesh)
        found = {number for number in (self.num_partitions, submesh) if number is not None} or {1}
        if len(found) > 1 or jax.device_count() % max(found):
            raise ValueError(
                f"num_partitions is {self.num_partitions} and model_parallel_submesh {self.model_parallel_submesh}; "
                f"expected one number that divides {jax.device_count()}, the number of devices. Give one of them."
            )
        return found.pop()

    @property
    def mesh(self) -> jax.sharding.Mesh:
        """The devices by `data` and `model`."""
        shape = (jax.device_count() // self.partitions, self.partitions)
        return jax.make_mesh(shape, ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def shardings(self, variables: Any) -> Any:
        """Where each parameter goes, by its axis names in `params_axes`; a tree like the parameters.

        Args:
          variables: what `init`, or `jax.eval_shape` of it, returned.
        """
        rules = standard_logical_axis_rules() if self.logical_axis_rules is None else self.logical_axis_rules
        mesh = self.mesh

        def place(names: sharding.AxisNames) -> jax.sharding.NamedSharding:
            spec = flax_partitioning.logical_to_mesh_axes(names, rules)
            return jax.sharding.NamedSharding(mesh, spec or jax.sharding.PartitionSpec())

        return jax.tree.map(
            place, sharding.get_axis_names(variables), is_leaf=lambda x: isinstance(x, sharding.AxisNames)
        )
