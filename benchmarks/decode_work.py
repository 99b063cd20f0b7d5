"""What `decode` measures: cases, the least that a machine has to do for each, and our program for it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure
from benchmarks.programs import Subject, Workload
from flaxformer.configs.flops import matmul_flops
from flaxformer.decoding import BeamSearch, Greedy, generate, prepare_weights
from flaxformer.decoding.model_session import ModelSession
from flaxformer.decoding.prompts import make_prompts

EOS = 1


@dataclasses.dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
      beams: 1 means greedy search.
      batch: items.
      source: tokens encoded per item, or read as a prompt by a model without an encoder.
      new: tokens written per item, never fewer.
      scanned: of the model whose layers are scanned.
    """

    beams: int
    batch: int
    source: int = 64
    new: int = 64
    scanned: bool = False

    @property
    def name(self) -> str:
        kind = "greedy" if self.beams == 1 else f"beam{self.beams}"
        return f"{kind}-b{self.batch}-s{self.source}-n{self.new}{'-scanned' * self.scanned}"


GROUPS: dict[str, tuple[Case, ...]] = {
    "rows": tuple(Case(beams, batch) for beams in (1, 4) for batch in (1, 8)),
    "length": (Case(1, 1), Case(1, 1, new=256), Case(1, 1, new=512)),
    "width": tuple(Case(beams, 4) for beams in (1, 2, 4, 8)),
    "batch": tuple(Case(1, batch) for batch in (1, 2, 4, 8, 16)),
    "compile": (Case(4, 8), Case(4, 8, scanned=True)),
}
"""What is measured together. The same case may be in several groups."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The least that a case takes.

    Attributes:
      flops: of the encoder, and of the decoder for every row and token, attending to what is written so far.
      bytes: of the decoder's weights, of its rows' own keys and values so far and of the encoder's, read at every step.
    """

    flops: int
    bytes: int

    def seconds(self, flops_per_second: float, bytes_per_second: float) -> float:
        """The least time: whichever of the two takes longer."""
        return max(self.flops / flops_per_second, self.bytes / bytes_per_second)


class Generator:
    """A model with random parameters, ready to generate.

    Attributes:
      model: the Linen module.
      parameters: how many numbers it has.
      params: those numbers.
    """

    def __init__(self, model: Any):
        subject = Subject(model, Workload(1, 8, 8))
        self.model, self.parameters = model, subject.parameters
        self.params = subject.random_params()
        self._session = ModelSession(model)
        sizes = self._session.vocabulary_sizes({"params": self.params})
        self._vocabulary = min(sizes.values(), default=256)

    def inputs(self, case: Case) -> dict[str, jax.Array]:
        """Full rows of random tokens."""
        name = "encoder_input_tokens" if self._session.has_encoder else "decoder_prompt_tokens"
        tokens = np.random.default_rng(0).integers(2, self._vocabulary, (case.batch, case.source))
        return {name: jnp.asarray(tokens, jnp.int32)}

    @functools.cache  # noqa: B019 (as many as there are dtypes, of a model that is kept anyway)
    def _variables(self, dtype: Any) -> dict[str, Any]:
        return prepare_weights(self.model, {"params": self.params}, dtype)

    def prepare(self, case: Case, dtype: Any = jnp.float32) -> tuple[measure.Task, measure.Program, float]:
        """The task that runs a case once, its program, and the seconds of the first call; weights are prepared.

        Raises:
          ValueError: when a sequence ended early, so that less was done than is counted.
        """
        strategy = Greedy() if case.beams == 1 else BeamSearch(case.beams)
        inputs, variables = self.inputs(case), self._variables(dtype)

        def run(variables: Any, inputs: Mapping[str, jax.Array]) -> Any:
            return generate(self.model, variables, inputs, strategy=strategy, max_new_tokens=case.new, eos_id=EOS)

        program = measure.compile_program(run, variables, inputs)
        first = measure.timed(lambda: jax.block_until_ready(program.run(variables, inputs)))
        lengths = np.asarray(program.run(variables, inputs).lengths)
        if lengths.max() < case.new:
            raise ValueError(
                f"{case.name} ended after {lengths.max()} tokens; expected {case.new}, for which the random model has "
                f"to avoid id {EOS}. Measure a model with a larger vocabulary."
            )
        task = lambda: jax.block_until_ready(program.run(variables, inputs))  # noqa: E731
        return task, program, program.trace_seconds + program.compile_seconds + first

    def work(self, case: Case) -> Work:
        """What a case takes at least; see `Work`."""
        steps = case.new - 1
        once, first, cross = self._traced(case, 2)
        _, second, _ = self._traced(case, 3)
        prompt = 1 if self._session.has_encoder else case.source + 1
        slots = prompt + (steps + 1) / 2  # attended to at a step, on average, its own token included
        flops = once + steps * (first[0] + (slots - 2) * (second[0] - first[0]))
        per_slot = second[1] - first[1]
        return Work(round(flops), round(steps * (self._weights() + slots * per_slot + cross)))

    def _traced(self, case: Case, slots: int) -> tuple[int, tuple[int, int], int]:
        """Operations of encoding and prefill, operations and cached bytes of a step of all rows, encoder's bytes."""
        session, variables = self._session, {"params": self.params}
        prompts = make_prompts({}, case.batch, 0)

        def begin(variables: Any, inputs: Any) -> Any:
            _, context, memory = session.prefill(session.open(variables, inputs), prompts, slots)
            return context.replace(variables=context.variables.get("cross_cache", {})), memory

        def step(variables: Any, context: Any, memory: Any, tokens: Any) -> Any:
            cross = {"cross_cache": context.variables} if context.variables else {}
            context = context.replace(variables={**variables, **cross})
            return session.step(context, session.expand(memory, case.beams), tokens)[0]

        inputs = self.inputs(case)
        if not session.has_encoder:
            inputs = {}
        jaxpr, (context, memory) = jax.make_jaxpr(begin, return_shape=True)(variables, inputs)
        tokens = jax.ShapeDtypeStruct((case.batch * case.beams,), jnp.int32)
        stepped = jax.make_jaxpr(step)(variables, context, memory, tokens)
        cached = _bytes(memory.cache) * case.beams
        return matmul_flops(jaxpr), (matmul_flops(stepped), cached), _bytes(context.variables)

    def _weights(self) -> int:
        """The bytes a step multiplies with: not the encoder's parameters, nor tables that are only looked up."""
        paths = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(self.params)]
        own_output = any("logits" in path for path, _ in paths)
        skipped = ("['encoder']", "embedder") if own_output else ("['encoder']",)
        return sum(leaf.nbytes for path, leaf in paths if not any(part in path for part in skipped))


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
