"""`generate`: one entry for every model and every strategy."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.core import Tracer

from flaxformer.decoding.checks import Fault
from flaxformer.decoding.constraints.base import Constraint
from flaxformer.decoding.drafts import Draft
from flaxformer.decoding.guidance import Guidance
from flaxformer.decoding.loop import run
from flaxformer.decoding.prefix import Prefix
from flaxformer.decoding.shrinking import generate_shrinking
from flaxformer.decoding.strategies.base import Generated, Strategy
from flaxformer.decoding.task import Plan, make_loop, prepare
from flaxformer.types import Array, PRNGKey


def generate(
    model: Any,
    variables: Mapping[str, Any],
    inputs: Mapping[str, Array] | Array,
    *,
    strategy: Strategy,
    max_new_tokens: int,
    eos_id: int | Sequence[int],
    pad_id: int = 0,
    bos_id: int | None = 0,
    rng: PRNGKey | None = None,
    constraints: Sequence[Constraint] = (),
    draft: Draft | None = None,
    guidance: Guidance | None = None,
    prefix: Prefix | None = None,
    checks: bool = False,
    shrink_every: int | None = None,
) -> Generated:
    """Writes sequences with a model, compiled once per model, strategy and shapes.

    The decoder reads `bos_id`, then the prompt if there is one; both stay out of the result. Prompts of differing
    lengths go into one batch, padded on either side; a row's result does not depend on its padding.

        tokens, scores, lengths = generate(model, variables, {"encoder_input_tokens": source},
                                           strategy=BeamSearch(num_beams=4), max_new_tokens=64, eos_id=1)

    Args:
      model: a Linen module that takes a `Step`: an encoder-decoder (`encode` and `decode`) or decoder-only.
      variables: with the collection 'params'.
      inputs: `encoder_input_tokens [B S]` (padded with 0; `[B S channels]` where the encoder reads spectrograms) and
        optionally a forced `decoder_prompt_tokens [B P]`; for a decoder-only model `decoder_prompt_tokens [B P]`, and
        for a prefix language model also `decoder_causal_attention [B P]`, 1 where tokens all see each other (the start
        token joins them). The first of these may be given as a bare array. `valid [B P]` says which tokens of the
        prompt are real, if not all but `pad_id`.
      strategy: `Greedy()`, `Sample(...)`, `BeamSearch(...)`, `DiverseBeamSearch(...)` or `Contrastive(...)`.
      max_new_tokens: T.
      eos_id: ends a sequence; it counts as a token of it. Several: any of them does, and the first is what `ForcedEnd`
        forces.
      pad_id: pads prompts and results.
      bos_id: what the decoder reads first. None: prompts start with a token of their own choice.
      rng: for strategies that draw; None is `jax.random.PRNGKey(0)`.
      constraints: what may be written, see `flaxformer.decoding.constraints`; applied in this order.
      draft: guesses ahead for `Greedy` and `Sample`, which makes them faster and changes nothing else.
      guidance: another context to be pushed away from.
      prefix: what `prefill` has read, in front of every prompt; `bos_id` stands there already.
      shrink_every: come back to the host after so many steps, and go on with a smaller batch once half of the items or
        more have ended. Pays where lengths differ much; compiles a loop per size (powers of two). Results are the same,
        but for the draws of `Sample`. Not within jit, nor with guidance.
      checks: look for logits that are no numbers, and say where they first occur. Not within jit.

    Returns:
      tokens `[B n T]` int32, scores `[B n]` float32 and lengths `[B n]` int32, best first. What a score is, and n, the
      strategy says.

    Raises:
      ValueError: before anything runs, for what cannot work: a strategy's settings, ids outside the vocabulary, an
        empty batch, sequences longer than the model's position table. With `checks`, for NaN among the logits.
    """
    task = prepare(
        model,
        variables,
        inputs,
        strategy,
        max_new_tokens,
        eos_id,
        pad_id,
        bos_id,
        rng,
        constraints,
        draft,
        guidance,
        prefix,
    )
    if shrink_every is None:
        generated, fault = _generate(task.plan, checks, task.data)
    else:
        _check_shrinking(shrink_every, guidance is not None, task.data)
        generated, fault = generate_shrinking(task.plan, task.data, checks, shrink_every)
    if fault is not None:
        if isinstance(fault.step, Tracer):
            raise ValueError("checks=True was given inside of jit; expected a call outside, where results are known.")
        fault.report(strategy.width)
    return generated


def _check_shrinking(every: int, guided: bool, data: Any) -> None:
    if every < 1 or guided or any(isinstance(x, Tracer) for x in jax.tree.leaves(data)):
        raise ValueError(
            f"shrink_every is {every}; expected at least 1, a call outside of jit, and no guidance. "
            "Leave it out for one compiled loop."
        )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _generate(plan: Plan, checks: bool, data: Any) -> tuple[Generated, Fault | None]:
    loop = make_loop(plan, data, checks)
    running = run(loop, loop.begin(data.variables, data.inputs, data.rng))
    return loop.finish(running), running.fault
