"""The training run: one loop from the parts of this package, interrupted and resumed at no cost in exactness.

    outcome = train(model, source, optimizer=optimizers.adamw(1e-3), steps=10_000, run_dir="runs/first")

A run lives in its folder: `checkpoint_<step>/`, `metrics.jsonl`, `tensorboard/`, `loss.png`. Starting it again with the
same arguments goes on from the latest checkpoint; killed at any moment and started again, it ends with the parameters
that an unbroken run would have reached, bit for bit on the same machine, since batches and dropout depend on the step
alone.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from flaxformer.training import checkpoints, sources
from flaxformer.training.batches import Batch
from flaxformer.training.initial import InitialCheckpoint
from flaxformer.training.progress import Progress
from flaxformer.training.records import Recorder
from flaxformer.training.state import Optimizer, TrainState, initializer
from flaxformer.training.step import MEAN_CROSS_ENTROPY, LossConfig, make_eval_step, make_train_step, mean_metrics


class NonFiniteError(ValueError, ArithmeticError):
    """A metric of a training step is infinite or no number."""


class Outcome(NamedTuple):
    """What a run ends with.

    Attributes:
      state: after the last step.
      metrics: the last record of `metrics.jsonl` that this process wrote; empty when there was nothing left to do.
    """

    state: TrainState
    metrics: dict[str, float]


def train(
    model: nn.Module,
    train_data: sources.Source,
    eval_data: sources.Source | None = None,
    *,
    optimizer: Optimizer,
    steps: int,
    run_dir: str | os.PathLike,
    loss: LossConfig = MEAN_CROSS_ENTROPY,
    log_every: int = 100,
    eval_every: int | None = None,
    eval_batches: int | None = None,
    save_every: int = 1000,
    keep: int | None = 3,
    seed: int = 0,
    tensorboard: bool = True,
    progress: bool = True,
    init_from: InitialCheckpoint | str | os.PathLike | None = None,
    stop_when_not_finite: bool = True,
) -> Outcome:
    """Trains `model` up to step `steps`, going on from the latest checkpoint in `run_dir`.

    Args:
      model: an encoder-decoder or decoder-only model: see `batches.module_inputs`.
      train_data: a source of batches: see `sources`.
      eval_data: what `eval/` metrics are computed on; none when None.
      optimizer: an optax transformation, or a function that returns one: see `state.initialize`.
      steps: of the whole run, earlier processes included.
      run_dir: the run's folder.
      loss: what is minimised.
      log_every: steps between records.
      eval_every: steps between evaluations; as `save_every` when None. The last step is evaluated too.
      eval_batches: batches per evaluation; all when None.
      save_every: steps between checkpoints. The last step is saved too.
      keep: how many checkpoints stay; all when None.
      seed: of the parameters and of dropout. The data has its own.
      tensorboard: also record for TensorBoard.
      progress: show a bar, or lines where the output is no terminal.
      init_from: a checkpoint, in any of the forms of `flaxformer.weights.t5x`, whose parameters the run starts from
        while `run_dir` has none; a path, or more about it.
      stop_when_not_finite: raise `NonFiniteError` instead of going on.

    Returns:
      The final state and the last metrics.

    Raises:
      ValueError: for intervals below 1, for data that ends too soon, for a checkpoint that does not fit.
      NonFiniteError: a `ValueError`, when a loss or a gradient is not finite.
    """
    due = _Due(steps, log_every, save_every if eval_every is None else eval_every, save_every)
    start = max(checkpoints.steps(run_dir), default=0)
    first, batches = _peek(sources.training_batches(train_data, start), start)
    create, optimizer = initializer(model, optimizer, first, seed)
    if start or init_from is None:
        state = checkpoints.restore(run_dir, jax.eval_shape(create)).state if start else create()
    else:
        given = init_from if isinstance(init_from, InitialCheckpoint) else InitialCheckpoint(init_from)
        state = given.into(model, create(), optimizer)
    running = _Running(make_train_step(model.apply, optimizer, loss), state, stop_when_not_finite)
    eval_step = jax.jit(make_eval_step(model.apply, loss))
    metrics: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        recorder = stack.enter_context(contextlib.closing(Recorder(run_dir, start, tensorboard)))
        shown = stack.enter_context(Progress(steps, start)) if progress else None
        for step in range(start + 1, steps + 1):
            running.run(_next(batches, step))
            if shown:
                shown.advance()
            if not due.records(step):
                continue
            metrics = running.take_stock(step, run_dir)
            if eval_data is not None and due.evaluates(step):
                metrics |= evaluate(eval_step, running.state.params, eval_data, eval_batches)
            recorder.write(step, metrics)
            if due.saves(step):
                checkpoints.save(run_dir, running.state, {"step": step}, keep)
                recorder.plot()
            if shown:
                shown.show(step, metrics)
            running.restart_clock()
    return Outcome(running.state, metrics)


def evaluate(
    eval_step: Callable[[Any, Batch], dict[str, Any]],
    params: Any,
    data: sources.Source,
    batches: int | None = None,
) -> dict[str, float]:
    """The metrics of `params` on all of `data`, named `eval/<metric>`.

    Args:
      eval_step: from `step.make_eval_step`, jitted.
      params: the model's parameters.
      data: see `sources`.
      batches: at most this many.

    Raises:
      ValueError: when there is no batch.
    """
    results = [eval_step(params, batch) for batch in sources.evaluation_batches(data, batches)]
    if not results:
        raise ValueError("the evaluation data has no batch; expected at least one. Is the split or eval_batches empty?")
    return {f"eval/{name}": value for name, value in mean_metrics(jax.device_get(results)).items()}


class _Due:
    """What is done after which step; the last step ends with everything."""

    def __init__(self, steps: int, log_every: int, eval_every: int, save_every: int):
        given = {"steps": steps, "log_every": log_every, "eval_every": eval_every, "save_every": save_every}
        for name, value in given.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1. Use a number above steps for never.")
        self._steps, self._log, self._eval, self._save = given.values()

    def _every(self, step: int, *intervals: int) -> bool:
        return step == self._steps or any(step % interval == 0 for interval in intervals)

    def evaluates(self, step: int) -> bool:
        return self._every(step, self._eval)

    def saves(self, step: int) -> bool:
        return self._every(step, self._save)

    def records(self, step: int) -> bool:
        """Whenever anything happens: a record never spans a checkpoint, so that no step is counted twice or lost."""
        return self._every(step, self._log, self._eval, self._save)


class _Running:
    """Starts steps without waiting for them, and takes stock of all since the last time.

    Attributes:
      state: after the steps started so far.
    """

    def __init__(self, train_step: Callable[..., Any], state: TrainState, stop_when_not_finite: bool = True):
        self.state = state
        self._stop = stop_when_not_finite
        self._step = jax.jit(train_step, donate_argnums=0)
        self._shapes: set[Any] = set()
        self._metrics: list[Any] = []
        self._timed: list[bool] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        """Time counts from now on."""
        self._began = time.monotonic()

    def run(self, batch: Batch) -> None:
        """Starts one step. Those that compile, the first of each shape, do not count for the speed."""
        shape = tuple((name, np.shape(batch[name])) for name in sorted(batch))
        compiled = shape in self._shapes
        if not compiled:
            jax.block_until_ready(self.state)
            began = time.monotonic()
        self.state, metrics = self._step(self.state, batch)
        if not compiled:
            jax.block_until_ready(metrics)
            self._began += time.monotonic() - began
            self._shapes.add(shape)
        self._metrics.append(metrics)
        self._timed.append(compiled)

    def take_stock(self, step: int, run_dir: str | os.PathLike) -> dict[str, float]:
        """The metrics of the steps since the last time, of which `step` is the latest, with their speed."""
        metrics = jax.device_get(self._metrics)
        seconds = time.monotonic() - self._began
        tokens = sum(float(each["tokens"]) for each, timed in zip(metrics, self._timed, strict=True) if timed)
        first = step - len(metrics) + 1
        self._metrics, self._timed = [], []
        for number, each in enumerate(metrics if self._stop else [], first):
            _check_finite(number, each, run_dir)
        return mean_metrics(metrics) | {"seconds": seconds, "tokens_per_second": tokens / max(seconds, 1e-9)}


def _check_finite(step: int, metrics: Mapping[str, Any], run_dir: str | os.PathLike) -> None:
    for name in sorted(metrics, key=lambda name: name != "loss"):  # the loss comes first
        if np.isfinite(metrics[name]):
            continue
        saved = checkpoints.steps(run_dir)
        good = f"the last good checkpoint is {checkpoints.path_of(run_dir, saved[-1])}" if saved else "there is none"
        raise NonFiniteError(
            f"{name} is {metrics[name]} at step {step}; expected a finite number. Training stopped before another "
            f"checkpoint was written; {good}. Lower the learning rate, clip gradients, or look at the batch, "
            f"the first of batches({step - 1})."
        )


def _peek(batches: Iterator[Batch], start: int) -> tuple[Batch, Iterator[Batch]]:
    """The first batch, and all of them."""
    first = _next(batches, start + 1)
    return first, itertools.chain([first], batches)


def _next(batches: Iterator[Batch], step: int) -> Batch:
    for batch in batches:
        return batch
    raise ValueError(
        f"the training data ended before step {step}; expected a batch for every step. Repeat it, or train fewer steps."
    )
