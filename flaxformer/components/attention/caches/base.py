"""What a cache is."""

from __future__ import annotations

import abc

import flax.linen as nn

from flaxformer.components.attention.caches.place import Place
from flaxformer.components.attention.masks import Mask
from flaxformer.step import Step
from flaxformer.types import Array


class Cache(abc.ABC):
    """What an attention layer remembers of earlier tokens. Implementations are frozen dataclasses without arrays.

    Attributes:
      branches: whether beams may share the slots of a row (`Step.visible`), and leaves named as in `store.BY_SLOT` may
        be given more slots; rows are repeated and reordered otherwise.
      rewinds: whether tokens may be taken back by writing their slots anew.
    """

    branches: bool = False
    rewinds: bool = True

    @property
    def reach(self) -> Mask | None:
        """What this cache cannot remember, as a mask that the layer applies wherever it attends; None: nothing."""
        return None

    @abc.abstractmethod
    def append(self, owner: nn.Module, key: Array, value: Array, step: Step) -> tuple[Array, Array, Place]:
        """Remembers this call's keys and values; returns everything there is to attend to.

        Args:
          owner: the attention module whose collection 'cache' keeps them.
          key: `[R T K H]`.
          value: `[R T K Hv]`.
          step: made by `Step.start`, `advance` or `branch`.

        Returns:
          key and value `[R S K H]`, and their place. A fresh cache returns this call's own, S = T.

        Raises:
          ValueError: when the collection may not be written, or does not hold what earlier calls wrote.
        """
