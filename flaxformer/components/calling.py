"""Calling a part with what its `__call__` asks for, so that any plain Linen module fits.

The layers offer every keyword they know (`step`, `enable_dropout`, and the older `decode`, `prefill`,
`prefill_lengths`, `deterministic`); a part receives those that its signature names. `flax.linen.LayerNorm`, an MLP that
only takes `x`, and a module written for google/flaxformer are called by the same line.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from flaxformer.step import Step

_OLD_KEYWORDS = ("decode", "prefill", "prefill_lengths")


@functools.cache
def _accepted(function: Callable[..., Any]) -> tuple[frozenset[str], bool]:
    """The parameter names of `function`, and whether it takes any keyword at all."""
    parameters = inspect.signature(function).parameters.values()
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return frozenset(p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)), any_keyword


def accepts(part: Callable[..., Any], name: str) -> bool:
    """Whether calling `part` (a Linen module, a class or a function) may name the keyword `name` explicitly."""
    return name in _accepted(_function(part))[0]


def call_part(part: Callable[..., Any], *args: Any, step: Step | None = None, **offered: Any) -> Any:
    """`part(*args)` with those of the offered keywords that its signature names.

    Args:
      part: a Linen module or a function.
      *args: passed as they are.
      step: offered as `step`, or, to parts that do not name it, as `decode`, `prefill` and `prefill_lengths`.
      **offered: further keywords, for example `enable_dropout`; `deterministic` is derived from it where a part asks.
    """
    step = step or Step()
    if accepts(part, "step"):
        offered["step"] = step
    else:
        offered |= {"decode": step.decode, "prefill": step.prefill, "prefill_lengths": step.lengths}
    if "enable_dropout" in offered:
        offered["deterministic"] = not offered["enable_dropout"]
    return part(*args, **{name: value for name, value in offered.items() if accepts(part, name)})


def note_old_convention(*parts: Any) -> None:
    """Says, once per class, which parts are written for google/flaxformer's keywords, and what to write now.

    Layers call it when they are set up. Such parts work as they did under T5X's protocol.

    Args:
      *parts: modules that a layer was given; None is skipped.
    """
    for part in parts:
        if part is not None:
            _note(type(part), _function(part))


@functools.cache
def _note(owner: type, function: Callable[..., Any]) -> None:
    names, _ = _accepted(function)
    old = [name for name in _OLD_KEYWORDS if name in names]
    if old and "step" not in names:
        warnings.warn(
            f"{owner.__module__}.{owner.__qualname__} is called with {', '.join(old)}, as google/flaxformer called its "
            "parts. It works under T5X's decoding protocol alone. Write `def __call__(self, x, *, step=None)` and read "
            "positions, slots and validity from the flaxformer.step.Step; or leave the keywords out if unused.",
            DeprecationWarning,
            stacklevel=2,
        )


def _function(part: Callable[..., Any]) -> Callable[..., Any]:
    part = inspect.unwrap(part)  # what a gin file names is wrapped
    if inspect.isfunction(part) or inspect.isbuiltin(part) or inspect.isclass(part):
        return part
    if isinstance(part, functools.partial) or inspect.ismethod(part):
        return part
    return type(part).__call__
