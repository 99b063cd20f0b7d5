"""What may stand on the right of a binding, before it is evaluated.

Glossary:

* *target*: the Python function or class that a selector such as `dense.MlpBlock` names. Bindings belong to targets, so
  the same class reached by two import paths has one set of bindings.
* *scope*: names before a selector, `output_logits/dense.DenseGeneral`. Bindings of a scope add to those of its prefixes
  and win over them.
* *macro*: a name that stands for a value, `%DROPOUT_RATE`.
* *marker*: one of the classes below, standing for what is known only when the value is asked for. Its `repr` is its gin
  text.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator
from typing import Any

from flaxformer.configs.errors import Location

Target = Callable[..., Any]
Scope = tuple[str, ...]


class Required(enum.Enum):
    """The value `%gin.REQUIRED`: to be bound by whoever includes the file."""

    REQUIRED = "%gin.REQUIRED"

    def __repr__(self) -> str:
        return self.value


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/module.Class`, or with `called` `@scope/module.Class()`; `path` is the full dotted path of the target."""

    target: Target
    path: str
    scope: Scope = ()
    called: bool = False

    def __repr__(self) -> str:
        return f"@{'/'.join((*self.scope, self.path))}{'()' if self.called else ''}"


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME`."""

    name: str

    def __repr__(self) -> str:
        return f"%{self.name}"


@dataclasses.dataclass(frozen=True)
class Constant:
    """`%module.NAME`: a Python object, for example a member of an enumeration."""

    path: str
    value: Any = dataclasses.field(compare=False)

    def __repr__(self) -> str:
        return f"%{self.path}"


Marker = Required | Reference | Macro | Constant


@dataclasses.dataclass(frozen=True)
class Bound:
    """A value, where it was bound, and what it replaced."""

    value: Any
    location: Location = dataclasses.field(compare=False)
    replaced: "Bound | None" = dataclasses.field(default=None, compare=False)


def markers(value: Any) -> Iterator[Marker]:
    """The markers inside `value`, however deeply nested."""
    if isinstance(value, Marker):
        yield value
    elif isinstance(value, dict):
        for item in (*value.keys(), *value.values()):
            yield from markers(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from markers(item)


def brief(value: Any) -> str:
    """The gin text of `value`, with targets named as gin files do: `@dense.MlpBlock()`."""
    match value:
        case Reference():
            return repr(dataclasses.replace(value, path=short(value.path)))
        case dict():
            return "{" + ", ".join(f"{brief(key)}: {brief(item)}" for key, item in value.items()) + "}"
        case list():
            return f"[{', '.join(map(brief, value))}]"
        case tuple():
            return f"({', '.join(map(brief, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def short(path: str) -> str:
    """The last two parts of a dotted path, as gin files write it: `dense.MlpBlock`."""
    return ".".join(path.split(".")[-2:])
