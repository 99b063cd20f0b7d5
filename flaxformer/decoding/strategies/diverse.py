"""Diverse beam search: several beam searches side by side, each kept away from what those before it just wrote."""

from __future__ import annotations

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from flaxformer.decoding.logits import NEG_INF, best_continuations
from flaxformer.decoding.prompts import Prompts
from flaxformer.decoding.strategies.base import Constrain, Generated, Request, Strategy
from flaxformer.decoding.strategies.beam import BeamSearch, BeamState
from flaxformer.decoding.strategies.beam_rules import BeamRule
from flaxformer.types import Array, PRNGKey


class DiverseState(flax.struct.PyTreeNode):
    """One beam search per group."""

    groups: tuple[BeamState, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["diversity", "rule"],
    meta_fields=["num_beams", "num_groups", "num_return"],
)
@dataclasses.dataclass(frozen=True)
class DiverseBeamSearch(Strategy):
    """Beam search in G groups of K/G beams; a token costs a group more the more often earlier groups just wrote it.

    Within a step the groups choose one after another. From a token's log-probability the number of beams of earlier
    groups that got this token in the same step, times `diversity`, is subtracted, and the difference is part of the
    hypothesis' score, as in Hugging Face's group beam search; constraints come after it, so that what is forced costs
    nothing here either. Hypotheses of all groups are returned together, the best first; where groups came to the same
    one, it is returned once, and empty slots are left at the end.

    Attributes:
      num_beams: beams of all groups together, K.
      num_groups: G, a divisor of K. 1 is beam search.
      diversity: what each occurrence costs, in nats. 0 finds the same in every group.
      num_return: hypotheses to return, n; None returns K.
      rule: as in `BeamSearch`.

    Source: Vijayakumar et al., "Diverse Beam Search" (2016), algorithm 1, with Hamming diversity.
    """

    num_beams: int = 4
    num_groups: int = 2
    diversity: float = 0.5
    num_return: int | None = None
    rule: BeamRule | None = None

    @property
    def width(self) -> int:
        return self.num_beams

    @property
    def _group(self) -> BeamSearch:
        return BeamSearch(self.num_beams // self.num_groups, rule=self.rule)

    def check(self, batch: int) -> None:
        if self.num_groups < 1 or self.num_beams < 1 or self.num_beams % self.num_groups:
            raise ValueError(
                f"num_beams is {self.num_beams} and num_groups {self.num_groups}; expected at least one beam per group "
                "and groups of equal size."
            )
        if self.diversity < 0:
            raise ValueError(f"diversity is {self.diversity}; expected at least 0, the cost of a repeated token.")
        BeamSearch(self.num_beams, num_return=self.num_return, rule=self.rule).check(batch)

    def init(self, request: Request, prompts: Prompts, rng: PRNGKey) -> DiverseState:
        return DiverseState(tuple(self._group.init(request, prompts, rng) for _ in range(self.num_groups)))

    def update(
        self, logits: Float[Array, "R V"], state: DiverseState, constrain: Constrain | None = None
    ) -> tuple[Int[Array, " R"], Int[Array, " R"], DiverseState]:
        size, vocabulary = self._group.num_beams, logits.shape[-1]
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        log_probs = log_probs.reshape(-1, self.num_groups, size, vocabulary)  # [B G K V]
        batch = len(log_probs)
        rows = jnp.arange(batch)[:, None]
        counts = jnp.zeros((batch, vocabulary), jnp.float32)
        written, parents, groups = [], [], []
        for index, group in enumerate(state.groups):
            x = log_probs - self.diversity * counts[:, None, None]
            if constrain is not None:  # rows of other groups too, for constraints know them all
                x = constrain(x.reshape(-1, vocabulary)).reshape(x.shape)
            x = x[:, index]
            count = self._group.candidates(group.request, vocabulary)
            chosen = best_continuations(x, group.live_scores, count, normalized=True)
            tokens, continued, group = self._group.extend(*chosen, group)
            tokens = tokens.reshape(batch, size)
            counts = counts.at[rows, tokens].add(1.0)
            written.append(tokens)
            parents.append(continued.reshape(batch, size) % size + index * size + rows * self.num_beams)
            groups.append(group)
        join = lambda parts: jnp.stack(parts, axis=1).reshape(-1)  # noqa: E731
        return join(written), join(parents), DiverseState(tuple(groups))

    def done(self, state: DiverseState) -> Bool[Array, ""]:
        return jnp.all(jnp.stack([self._group.done(group) for group in state.groups]))

    def going(self, state: DiverseState) -> Bool[Array, " B"]:
        return jnp.any(jnp.stack([self._group.going(group) for group in state.groups]), axis=0)

    def finish(self, state: DiverseState) -> Generated:
        found = [self._group.finish(group) for group in state.groups]
        tokens, scores, lengths = (jnp.concatenate(x, axis=1) for x in zip(*found, strict=True))
        tokens, scores, lengths = _once(tokens, scores, lengths, state.groups[0].request.pad_id)
        order = jnp.argsort(-scores, axis=1, stable=True)[:, : self.num_return]
        pick = functools.partial(jnp.take_along_axis, indices=order, axis=1)
        return Generated(jnp.take_along_axis(tokens, order[..., None], axis=1), pick(scores), pick(lengths))


def _once(
    tokens: Int[Array, "B K T"], scores: Float[Array, "B K"], lengths: Int[Array, "B K"], pad_id: int
) -> tuple[Int[Array, "B K T"], Float[Array, "B K"], Int[Array, "B K"]]:
    """The same with an empty slot for every hypothesis that occurs elsewhere with a better score, or earlier."""
    same = jnp.all(tokens[:, :, None] == tokens[:, None], axis=-1) & (lengths[:, :, None] == lengths[:, None])
    place = jnp.arange(scores.shape[1])
    behind = (scores[:, None] > scores[:, :, None]) | (
        (scores[:, None] == scores[:, :, None]) & (place < place[:, None])
    )  # [B K K], whether the second is the better of the two
    again = jnp.any(same & behind, axis=-1)
    tokens = jnp.where(again[..., None], pad_id, tokens)
    return tokens, jnp.where(again, NEG_INF, scores), jnp.where(again, 0, lengths)
