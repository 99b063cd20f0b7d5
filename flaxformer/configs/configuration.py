"""Bindings and macros of one set of gin files, and objects built from them.

gin keeps one configuration per process; here each is an object, so that several can be in use at once. What it builds
stays tied to it: a factory made from `@t5_architecture.EncoderLayer` is a `Configured` callable that looks up its
arguments in its own configuration each time it is called, long after loading and inside `init` or `apply`.

A called reference, `@dense.MlpBlock()`, is evaluated anew for every call that consumes it, so that each layer gets
modules of its own. A scope is active while what it names is being called, as in gin.
"""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gin

from flaxformer.configs.checking import check
from flaxformer.configs.errors import ConfigurationError, near_misses
from flaxformer.configs.values import Bound, Constant, Macro, Reference, Required, Scope, Target, markers, short
from flaxformer.telling import told


@functools.cache
def _signature(target: Target) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (ValueError, TypeError):  # some built-in functions have none
        return None


def parameters(target: Target) -> tuple[str, ...] | None:
    """The names that may be bound for `target`; None when it takes any keyword."""
    signature = _signature(target)
    if signature is None or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(name for name, parameter in signature.parameters.items() if parameter.kind in named)


_SCOPE: contextvars.ContextVar[tuple[int, Scope]] = contextvars.ContextVar("scope", default=(0, ()))


@dataclasses.dataclass(eq=False)
class Configuration:
    """What a set of gin files says.

    Attributes:
      bindings: for each scope and target, its bound parameters.
      macros: for each macro name, its value.
      targets: every function and class named so far, by full dotted path.
      symbols: names that the files' imports bound, with their full path and module.
      modules: names of the imported modules, in order.
      files: the files read, in order.
    """

    bindings: dict[tuple[Scope, Target], dict[str, Bound]] = dataclasses.field(default_factory=dict)
    macros: dict[str, Bound] = dataclasses.field(default_factory=dict)
    targets: dict[str, Target] = dataclasses.field(default_factory=dict)
    symbols: dict[str, tuple[str, Any]] = dataclasses.field(default_factory=dict)
    modules: dict[str, None] = dataclasses.field(default_factory=dict)
    files: list[Path] = dataclasses.field(default_factory=list)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Configuration):
            return NotImplemented
        return self.macros == other.macros and self.bindings == other.bindings

    def __hash__(self) -> int:
        return hash((frozenset(self.macros), frozenset(self.bindings)))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"symbols": {}}  # modules do not pickle, and only parsing needs them

    def __contains__(self, macro: str) -> bool:
        return macro in self.macros

    def build(self, macro: str) -> Any:
        """The value of a macro, for example `build("ARCHITECTURE")`; all that it will need is checked first.

        Raises:
          ConfigurationError: when the macro, or anything that can be reached from it, is undefined or still required.
        """
        check(self, Macro(macro))
        return self.evaluate(Macro(macro))

    def configured(self, target: Target) -> "Configured":
        """`target` with the parameters bound in this configuration, for example the function that runs a training.

        Raises:
          ConfigurationError: when something that these parameters need is undefined or still required.
        """
        path = f"{target.__module__}.{getattr(target, '__qualname__', target)}"
        check(self, Reference(target, path))
        return Configured(self, Reference(target, path))

    def evaluate(self, value: Any) -> Any:
        """`value` with every marker in it replaced by what it stands for now; containers are copied."""
        match value:
            case Reference(called=True):
                return Configured(self, value)()
            case Reference():
                return Configured(self, value)
            case Macro(name):
                value = self.macro(name).value
                if value is Required.REQUIRED:
                    check(self, Macro(name))  # raises, with the place
                with _scope(self, tuple(name.split("/"))):
                    return self.evaluate(value)
            case Constant():
                return value.value
            case Required():
                raise ConfigurationError("a value is still %gin.REQUIRED; bind it before it is used.")
            case dict():
                return {self.evaluate(key): self.evaluate(item) for key, item in value.items()}
            case list() | tuple():
                return type(value)(self.evaluate(item) for item in value)
        return value

    def bound(self, target: Target, scope: Scope) -> dict[str, Bound]:
        """The parameters bound for `target` in `scope`: those of the scope win over those of its prefixes."""
        found: dict[str, Bound] = {}
        for length in range(len(scope) + 1):
            found |= self.bindings.get((scope[:length], target), {})
        return found

    def used_macros(self) -> set[str]:
        """The names of the macros that some value mentions."""
        values = [*self.macros.values(), *(bound for found in self.bindings.values() for bound in found.values())]
        return {marker.name for bound in values for marker in markers(bound.value) if isinstance(marker, Macro)}

    def macro(self, name: str, because: str = "") -> Bound:
        """What is bound to a macro, or, for `scope/NAME` without a value of its own, to its scope, as in gin.

        Raises:
          ConfigurationError: when nothing is; `because` then says who wanted it.
        """
        scope = name.split("/")
        for length in range(len(scope), 0, -1):
            found = self.macros.get("/".join(scope[:length]))
            if found is not None:
                return found
        use = f" It is {because}." if because else ""
        raise ConfigurationError(f"the macro {name} is not defined; {near_misses(name, self.macros)}{use}")


def _scope(configuration: Configuration, scope: Scope) -> contextlib.AbstractContextManager[Any]:
    return told(_SCOPE, (id(configuration), scope))


@dataclasses.dataclass(frozen=True)
class Configured:
    """A function or class that takes the arguments not given to it from a configuration.

    Calling it is calling the target: arguments of the call win over bound ones. It can be pickled, compared and hashed
    like the reference it comes from.
    """

    configuration: Configuration = dataclasses.field(repr=False)
    reference: Reference

    @property
    def __name__(self) -> str:
        return self.reference.path.rsplit(".", 1)[-1]

    @property
    def __wrapped__(self) -> Target:
        return self.reference.target

    @property
    def __signature__(self) -> inspect.Signature | None:
        return _signature(self.reference.target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        target = self.reference.target
        owner, active = _SCOPE.get()
        scope = self.reference.scope or (active if owner == id(self.configuration) else ())
        with _scope(self.configuration, scope):
            bound = self.configuration.bound(target, scope)
            given = {*kwargs, *_positional(target, args)}
            values = {
                name: self.configuration.evaluate(found.value) for name, found in bound.items() if name not in given
            }
            values |= kwargs
            self._check_complete(args, values, scope)
            try:
                return target(*args, **values)
            except Exception as error:
                places = ", ".join(sorted({str(found.location) for found in bound.values()}))
                error.add_note(f"while calling {self.reference!r}" + (f", bound at {places}" if places else ""))
                raise

    def _check_complete(self, args: tuple, values: Mapping[str, Any], scope: Scope) -> None:
        target = self.reference.target
        signature = _signature(target)
        if signature is None:
            return
        positional = _positional(target, args)
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        missing = [
            name
            for name, p in signature.parameters.items()
            if p.kind in named and (p.default is p.empty or p.default is gin.REQUIRED)
            if name not in values and name not in positional
        ]
        if missing:
            name = "/".join((*scope, short(self.reference.path)))
            raise ConfigurationError(
                f"{name} needs {', '.join(missing)}; neither the caller nor a binding gives a value. "
                f"Bind it, for example: {name}.{missing[0]} = VALUE"
            )


def _positional(target: Target, args: tuple) -> tuple[str, ...]:
    """The names of the parameters that `args` fill."""
    signature = _signature(target)
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [] if signature is None else [n for n, p in signature.parameters.items() if p.kind in kinds]
    return tuple(names[: len(args)])
