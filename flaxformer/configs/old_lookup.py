"""Looking old names up in the tables of `old_names`."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Mapping

from flaxformer.configs.configuration import parameters
from flaxformer.configs.old_names import NO_COUNTERPART, No, Symbol


def parameter_of(symbol: Symbol, old: str) -> str:
    """What a parameter of an old name is called here; a `No` where there is none. `''` stays as it is."""
    name = symbol.parameters.get(old, old)
    if not name or isinstance(name, No):
        return name
    module, _, attribute = symbol.name.rpartition(".")
    accepted = parameters(getattr(importlib.import_module(module), attribute))
    if accepted is None or name.partition(".")[0] in accepted:
        return name
    return No(f"{module.rpartition('.')[2]}.{attribute} has no such parameter")


def without_prefix(path: str) -> str:
    """An include's path from the folder that holds the package on."""
    found = re.search(r"(?:^|/)(flaxformer/t5x/.*)", path)
    return found[1] if found else path.removeprefix("./")


def longest(table: Mapping[str, No], name: str, separator: str) -> No | None:
    """The entry of the longest key that `name` is or starts with."""
    keys = [key for key in table if name == key or name.startswith(f"{key}{separator}")]
    return table[max(keys, key=len)] if keys else None


def without_counterpart(full: str) -> No | None:
    return longest(NO_COUNTERPART, full, ".") or (missing_module(full.rpartition(".")[0]) if "." in full else None)


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
