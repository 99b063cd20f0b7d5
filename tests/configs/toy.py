"""Small classes to configure, and gin files about them."""

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import gin


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Leaf:
    size: int = 0
    colour: Any = None


@dataclasses.dataclass
class Branch:
    length: int
    leaf: Any = None
    make_leaf: Callable[..., Leaf] | None = None
    make_twig: Callable[..., "Branch"] | None = None

    def grow(self) -> list[Any]:
        """Everything below, with every factory called after construction, twice to see that the results are fresh."""
        twigs = [self.make_twig().grow() for _ in range(2)] if self.make_twig else []
        return [self.length, self.leaf, self.make_leaf() if self.make_leaf else None, twigs]


def together(first: Any, second: Any = None, *, make_leaf: Callable[..., Leaf]) -> list[Any]:
    """Calls its factory while it is being called itself, so in its own scope."""
    return [first, second, make_leaf()]


def anything(**keywords: Any) -> dict[str, Any]:
    return keywords


def needs_binding(steps: int = gin.REQUIRED, rate: float = 0.5) -> tuple[int, float]:
    return steps, rate


def fails() -> float:
    return 1 / 0


not_callable = 3

HEADER = """
from __gin__ import dynamic_registration

from tests.configs import toy
"""

# What gin offers, in one file: macros before their definition, scopes and nested scopes, fresh instances, factories in
# macros, blocks, containers with references inside, references evaluated in the scope of their macro.
EVERYTHING = (
    HEADER
    + """
import tests.configs.toy as again

ARCHITECTURE = @trunk/toy.Branch()
SIZE = 3
LEAVES = [@toy.Leaf(), {'key': (@red/toy.Leaf(), %SIZE)}, -1e-3]
FACTORY = @red/toy.Leaf
SHADED = @toy.Leaf()
a/b/NESTED = 5

toy.Branch:
  length = %SIZE
  leaf = %LEAVES
  make_leaf = @toy.Leaf
trunk/toy.Branch.make_twig = @twig/toy.Branch
trunk/toy.Branch.leaf = @bunch/toy.together()
twig/again.Branch:
  make_twig = @twig/tip/toy.Branch  # a comment
  leaf = %FACTORY
twig/tip/toy.Branch:
  make_twig = None
  length = %a/b/NESTED
  leaf = %SHADED
toy.Leaf.size = %SIZE
red/toy.Leaf.size = 7
trunk/toy.Leaf.size = 8
bunch/toy.Leaf.size = 9
SHADED/toy.Leaf.size = 11
toy.together.make_leaf = @toy.Leaf
bunch/toy.together.first = @toy.Leaf()
bunch/toy.together.second = @red/toy.Leaf()
"""
)
