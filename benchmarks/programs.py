"""The programs that `step_time` measures: what is compiled, for which arguments, and how it is run again and again."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import measure
from flaxformer.configs.explanation import parameter_table
from flaxformer.configs.flops import matmul_flops
from flaxformer.training import losses
from flaxformer.training.state import TrainState
from flaxformer.training.step import make_train_step

PROGRAMS = ("forward", "train", "train_with_metrics")
LEARNING_RATE = 1e-4


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a model is run on: full rows of random tokens, without padding and without dropout.

    Attributes:
      batch: rows.
      source: tokens per row that are encoded.
      target: tokens per row that are decoded.
    """

    batch: int
    source: int
    target: int

    def __post_init__(self) -> None:
        if min(self.batch, self.source, self.target) < 1:
            raise ValueError(
                f"batch is {self.batch}, source {self.source} and target {self.target}; expected at least 1 of each."
            )


def token_shapes(model: nn.Module, workload: Workload) -> dict[str, tuple[int, int]]:
    """The shapes of the token arrays that calling `model` takes.

    Raises:
      ValueError: for a model that reads no tokens.
    """
    lengths = {
        "encoder_input_tokens": workload.source,
        "decoder_input_tokens": workload.target,
        "decoder_target_tokens": workload.target,
    }
    accepted = inspect.signature(type(model).__call__).parameters
    found = {name: (workload.batch, length) for name, length in lengths.items() if name in accepted}
    if not found:
        raise ValueError(
            f"{type(model).__name__} is called with {', '.join(list(accepted)[1:]) or 'nothing'}; expected a model "
            f"over tokens, called with some of {', '.join(lengths)}."
        )
    return found


class Subject:
    """A model with random parameters and a random batch, ready to be compiled.

    Attributes:
      variables: shapes of the model's variables.
      parameters: how many numbers the model has.
      batch: feature name -> token ids.
      tokens: how many tokens of the batch are encoded or predicted.
      forward_flops: operations of all products in a traced forward pass.
      objective: what a training step minimises.
    """

    def __init__(self, model: nn.Module, workload: Workload, seed: int = 0):
        if not isinstance(model, nn.Module):
            raise ValueError(f"the model is a {type(model).__name__}; expected a Linen module. Name another --root.")
        random = np.random.default_rng(seed)
        self._apply, shapes = model.apply, token_shapes(model, workload)
        zeros = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name, shape in shapes.items()}
        self.variables = jax.eval_shape(lambda key, b: model.init(key, **b, enable_dropout=False), _key(), zeros)
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))
        vocabulary = min(_axis_sizes(self.variables, "vocab"), default=256)
        self.batch = {
            name: jnp.asarray(random.integers(min(2, vocabulary - 1), vocabulary, shape), jnp.int32)
            for name, shape in shapes.items()
        }
        counted = [name for name in shapes if name != "decoder_input_tokens" or "decoder_target_tokens" not in shapes]
        self.tokens = sum(self.batch[name].size for name in counted)
        self.forward_flops = matmul_flops(jax.make_jaxpr(self.forward)(self.variables["params"], self.batch))
        self.objective = "cross entropy" if "decoder_target_tokens" in shapes else "mean square of the output"

    def random_params(self, seed: int = 0) -> Any:
        """Small random parameters; the model's own initialisation would take longer than all that is measured."""
        random = np.random.default_rng(seed)
        return jax.tree.map(
            lambda leaf: jnp.asarray(random.standard_normal(leaf.shape, np.float32) * 0.05, leaf.dtype),
            self.variables["params"],
        )

    def forward(self, params: Any, batch: Mapping[str, Any]) -> Any:
        """The model's output."""
        return self._apply({"params": params}, **batch, enable_dropout=False)

    def loss(self, params: Any, batch: Mapping[str, Any]) -> Any:
        """What a training step minimises: the mean over all targets."""
        output = self.forward(params, batch)
        if "decoder_target_tokens" not in batch:
            return jnp.mean(jnp.square(output))
        total, _, count = losses.compute_weighted_cross_entropy(output, batch["decoder_target_tokens"])
        return total / count

    def train(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Any]:
        """Loss, gradient, AdamW: what every implementation does, and nothing else."""
        loss, gradients = jax.value_and_grad(self.loss)(state.params, batch)
        updates, opt_state = _optimizer().update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state), loss

    def train_with_metrics(self, state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Any]:
        """The step of `flaxformer.training`: as `train`, with accuracy, norms and counts."""
        return make_train_step(self._apply, _optimizer())(state, batch)


@dataclasses.dataclass(frozen=True)
class Ready:
    """A compiled program and the task that runs it.

    Attributes:
      task: runs it once.
      program: what is known of it.
      flops: floating-point operations that the model needs, see `step_time`.
      first_call_seconds: tracing, compiling and the first run.
    """

    task: measure.Task
    program: measure.Program
    flops: int
    first_call_seconds: float


def prepare(subject: Subject, name: str, donate: bool = True) -> Ready:
    """Compiles a program of `PROGRAMS` and runs it once.

    Args:
      subject: the model and its batch.
      name: of the program.
      donate: whether a training step may overwrite the state it is given.
    """
    make = _prepare_forward if name == "forward" else _prepare_train
    task, program = make(subject, name, donate)
    first = program.trace_seconds + program.compile_seconds + measure.timed(task)
    return Ready(task, program, subject.forward_flops * (1 if name == "forward" else 3), first)


def _prepare_forward(subject: Subject, name: str, donate: bool) -> tuple[measure.Task, measure.Program]:
    params = subject.random_params()
    program = measure.compile_program(subject.forward, params, subject.batch)
    return (lambda: jax.block_until_ready(program.run(params, subject.batch))), program


def _prepare_train(subject: Subject, name: str, donate: bool) -> tuple[measure.Task, measure.Program]:
    step: Callable[..., Any] = getattr(subject, name)
    carry = [TrainState.create(subject.random_params(), _optimizer(), _key())]
    program = measure.compile_program(step, carry[0], subject.batch, donate=(0,) if donate else ())

    def advance() -> Any:
        carry[0], measured = program.run(carry[0], subject.batch)
        return jax.block_until_ready((carry[0], measured))

    return advance, program


def _optimizer() -> optax.GradientTransformation:
    return optax.adamw(LEARNING_RATE)


def _key() -> Any:
    return jax.random.key(0)


def _axis_sizes(variables: Mapping[str, Any], axis: str) -> list[int]:
    """The sizes of all parameter axes of that logical name."""
    table = [parameter for parameter in parameter_table(variables) if parameter.axes]
    return [size for p in table for name, size in zip(p.axes or (), p.shape, strict=True) if name == axis]
