"""Gin configurations as objects: find shipped files, load models from them, explain and validate them.

    model = flaxformer.configs.load("t5_1_1/small", bindings=["DROPOUT_RATE = 0.1"])

Nothing here reads or changes the global state of gin-config; whoever calls gin themselves adds `folder()` to gin's
search path and parses the same files.
"""

from typing import TYPE_CHECKING, Any

from flaxformer.configs.configuration import Configuration, Configured
from flaxformer.configs.errors import ConfigurationError
from flaxformer.configs.files import find, folder, shipped
from flaxformer.configs.loading import load
from flaxformer.configs.parsing import read
from flaxformer.configs.writing import write

if TYPE_CHECKING:
    from flaxformer.configs.explanation import Explanation, explain

__all__ = [
    "Configuration",
    "ConfigurationError",
    "Configured",
    "Explanation",
    "explain",
    "find",
    "folder",
    "load",
    "read",
    "shipped",
    "write",
]


def __getattr__(name: str) -> Any:
    """Loads `explain` when it is asked for: it alone needs JAX."""
    if name in ("Explanation", "explain"):
        from flaxformer.configs import explanation

        return getattr(explanation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
