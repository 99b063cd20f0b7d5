"""Looking old names up in the tables of `old_names`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from typing import NamedTuple

from flaxformer.configs.configuration import parameters
from flaxformer.configs.old_names import MODULES, NO_COUNTERPART, No


class Symbol(NamedTuple):
    """An old function or class: its module, the module of ours, and its name in both."""

    old: str
    new: str
    name: str


def symbol_of(full: str) -> tuple[Symbol, str] | None:
    """The symbol that an old dotted path names or goes on from, and what follows it; None where we have none."""
    parts = full.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = MODULES.get(".".join(parts[:end]))
        if module is not None and parts[end] in module.names:
            return Symbol(".".join(parts[:end]), module.name, parts[end]), ".".join(parts[end + 1 :])
    return None


def why_not(symbol: Symbol, parameter: str) -> No | None:
    """Why a parameter has no counterpart; None where it has, and for `''`."""
    if not parameter:
        return None
    listed = MODULES[symbol.old].parameters.get(f"{symbol.name}.{parameter}")
    accepted = parameters(getattr(importlib.import_module(symbol.new), symbol.name))
    if listed is not None or accepted is None or parameter.partition(".")[0] in accepted:
        return listed
    return No(f"{symbol.new.rpartition('.')[2]}.{symbol.name} has no such parameter")


def longest(table: Mapping[str, No], name: str, separator: str) -> No | None:
    """The entry of the longest key that `name` is or starts with."""
    keys = [key for key in table if name == key or name.startswith(f"{key}{separator}")]
    return table[max(keys, key=len)] if keys else None


def without_counterpart(full: str) -> No | None:
    """Why an old dotted path has no counterpart; None for what is not old."""
    return longest(NO_COUNTERPART, full, ".") or (missing_module(full.rpartition(".")[0]) if "." in full else None)


def is_old(module: str) -> bool:
    """Whether an import of the module goes: T5X's, or one of google/flaxformer's that this version does not have."""
    return (module in MODULES and module != "seqio") or missing_module(module) is not None


def missing_module(module: str) -> No | None:
    """Why a module cannot be imported: it is T5X's, or one of ours that this version does not have."""
    found = longest(NO_COUNTERPART, module, ".")
    if found is not None or not module.startswith("flaxformer."):
        return found
    for end in range(2, module.count(".") + 2):
        name = ".".join(module.split(".")[:end])
        try:
            if importlib.util.find_spec(name) is None:
                return No(f"this version has no module {name}")
        except ModuleNotFoundError:
            return None  # the part before is a module: what follows are names in it
    return None
