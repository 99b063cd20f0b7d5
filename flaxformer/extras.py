"""Optional dependencies, imported where they are used and named when they are missing."""

import importlib
from types import ModuleType


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


def require(module: str, *, extra: str) -> ModuleType:
    """Imports an optional dependency.

    Args:
      module: dotted name, for example `'orbax.checkpoint'`.
      extra: the extra of this package that installs it, for example `'train'`.

    Returns:
      The module itself (the leaf of a dotted name).

    Raises:
      MissingExtraError: when it is not installed. A failure inside an installed dependency is raised as it is.

    >>> require("json.decoder", extra="train").JSONDecodeError.__name__
    'JSONDecodeError'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingExtraError(
            f"{module} is not installed; expected the optional dependencies of the extra {extra!r}. "
            f"Install them with: pip install 'flaxformer[{extra}]'"
        ) from error
