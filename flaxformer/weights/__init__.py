"""Weights from elsewhere: T5X checkpoints in all their forms, Hugging Face folders, and what they can be turned into.

`load_pretrained` and `save_pretrained` are those of `flaxformer.weights.pretrained`, imported when asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flaxformer.weights.pretrained import load_pretrained, save_pretrained

__all__ = ["load_pretrained", "save_pretrained"]


def __getattr__(name: str) -> Any:
    """Loads the two functions when they are asked for: they need JAX."""
    if name in __all__:
        from flaxformer.weights import pretrained

        return getattr(pretrained, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
