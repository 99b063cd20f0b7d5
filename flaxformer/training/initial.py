"""Where a run starts from, other than fresh parameters: a checkpoint of T5X, of this library, or a part of one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from flaxformer.training.state import TrainState

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class InitialCheckpoint:
    """A checkpoint to start from.

        without_decoder = [("target/decoder/.*", None)]
        start = InitialCheckpoint("models/t5", assignment_map=without_decoder, strict=False, fallback_to_scratch=True)
        runner.train(..., init_from=start)

    Attributes:
      path: see `flaxformer.weights.t5x.find_checkpoint`, like `step`.
      step: which checkpoint in `path`; the latest when None.
      assignment_map: `(regular expression, replacement or None)` rules, see `flaxformer.weights.assignment`.
      strict: refuse entries of the checkpoint that the model does not have.
      fallback_to_scratch: parameters that the checkpoint does not have stay as they were drawn; else they are refused.
      layouts: see `flaxformer.weights.t5x.restore_params`.
      optimizer: go on with the statistics and the step count of the checkpoint's optimizer, where it has those of
        Adafactor for every parameter. The run's own steps count from 0.
    """

    path: str | os.PathLike
    step: int | None = None
    assignment_map: Sequence[tuple[str, str | None]] = ()
    strict: bool = True
    fallback_to_scratch: bool = False
    layouts: Sequence[Callable[[Params], Params]] = ()
    optimizer: bool = False

    def into(self, model: nn.Module, state: TrainState, optimizer: optax.GradientTransformation) -> TrainState:
        """`state` with the checkpoint's parameters.

        Args:
          model: whose parameters they are.
          state: before the first step.
          optimizer: makes its state anew.

        Raises:
          CheckpointError: a `ValueError`, for what cannot be read or does not fit.
        """
        from flaxformer.weights import t5x  # needed only here

        params = t5x.restore_params(
            model,
            self.path,
            self.step,
            assignment_map=self.assignment_map,
            layouts=self.layouts,
            fallback=state.params if self.fallback_to_scratch else None,
            strict=self.strict,
            like=state.params,
        )
        opt_state = jax.jit(optimizer.init)(params)
        if self.optimizer and not self.layouts:
            opt_state = self._with_statistics(opt_state, params)
        return dataclasses.replace(state, params=params, opt_state=opt_state)

    def steps_done(self) -> int:
        """The checkpoint's step."""
        return int(np.asarray(self._stored().get("state", {}).get("step", 0)))

    def _stored(self) -> Mapping[str, Any]:
        from flaxformer.weights import t5x

        return t5x.load_t5x_checkpoint(self.path, self.step, lazy_parameters=True)

    def _with_statistics(self, opt_state: Any, params: Any) -> Any:
        from flaxformer.weights import t5x

        stored = self._stored()
        statistics = stored.get("state", {}).get("param_states")
        if not isinstance(statistics, Mapping):
            return opt_state
        if self.assignment_map:
            tree = {"state": {"param_states": statistics}}
            wanted = jax.tree.map(lambda _: dict.fromkeys(("v_row", "v_col", "v", "m"), 0), params)
            renamed = t5x.apply_assignment_map(
                tree, {"state": {"param_states": wanted}}, self.assignment_map, require_all_rules_match=False
            )
            statistics = renamed.get("state", {}).get("param_states", {})
        return _filled(opt_state, statistics, int(np.asarray(stored["state"].get("step", 0))))


def _filled(opt_state: Any, statistics: Mapping[str, Any], step: int) -> Any:
    """The optimizer's state with Adafactor's statistics and the count of steps; as it was unless all are there."""
    flat: dict[str, Any] = traverse_util.flatten_dict(dict(statistics), sep="/")
    missing = []

    def of(name: str, tree: Any) -> Any:
        def read(keys: Any, leaf: Any) -> Any:
            found = flat.get(f"{jax.tree_util.keystr(keys, simple=True, separator='/')}/{name}")
            if found is None or np.shape(found) != np.shape(leaf):
                missing.append(keys)
                return leaf
            return jnp.asarray(np.asarray(found), leaf.dtype)

        return jax.tree_util.tree_map_with_path(read, tree)

    def fill(node: Any) -> Any:
        if isinstance(node, optax.FactoredState):
            return optax.FactoredState(node.count, of("v_row", node.v_row), of("v_col", node.v_col), of("v", node.v))
        return node._replace(ema=of("m", node.ema)) if isinstance(node, optax.EmaState) else node

    kinds = (optax.FactoredState, optax.EmaState)
    filled = jax.tree.map(fill, opt_state, is_leaf=lambda node: isinstance(node, kinds))
    has_factored = any(
        isinstance(node, kinds[0]) for node in jax.tree.leaves(opt_state, is_leaf=lambda n: isinstance(n, kinds))
    )
    if missing or not has_factored:
        return opt_state

    def count(keys: Any, leaf: Any) -> Any:
        return jnp.asarray(step, leaf.dtype) if getattr(keys[-1], "name", None) == "count" else leaf

    return jax.tree_util.tree_map_with_path(count, filled)
