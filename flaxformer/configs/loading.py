"""`load`: from the name of a gin file to the object it describes."""

from collections.abc import Sequence
from typing import Any

from flaxformer.configs.configuration import Configuration
from flaxformer.configs.errors import ConfigurationError, near_misses
from flaxformer.configs.files import PathLike
from flaxformer.configs.parsing import ROOTS, read


def load(
    name: PathLike | Sequence[PathLike],
    bindings: Sequence[str] = (),
    search_paths: Sequence[PathLike] = (),
    *,
    root: str | None = None,
) -> Any:
    """Builds what a gin file describes, without touching global gin state.

    Args:
      name: a path or the name of a shipped file (see `flaxformer.configs.shipped`), or a sequence of them, in order.
      bindings: gin statements that come after the files, for example `"DROPOUT_RATE = 0.1"`.
      search_paths: folders to look for files in, before the working directory and the shipped files.
      root: the macro to build; by default `MODEL` where the files define it, else `ARCHITECTURE`.

    Returns:
      The value of that macro: for the shipped files, a Linen module. It stays usable for good, next to any number of
      others: the factories in it remember their own configuration.

    Raises:
      ConfigurationError: a `ValueError` that says which file and line, and what was probably meant.

    >>> load("t5_1_1/tiny", bindings=["NUM_DECODER_LAYERS = 1"]).decoder_factory().num_layers
    1
    """
    configuration = read(name, bindings, search_paths, macros=[root] if root else [])
    return configuration.build(chosen_root(configuration, root))


def chosen_root(configuration: Configuration, root: str | None) -> str:
    """`root`, or the macro that a configuration is about.

    Raises:
      ConfigurationError: when it is not defined.
    """
    if root is None:
        return default_root(configuration)
    if root not in configuration:
        usual = [f" Without a root, {macro} is built." for macro in ROOTS if macro in configuration][:1]
        raise ConfigurationError(
            f"the root {root!r} is not defined in {', '.join(map(str, configuration.files))}; "
            f"{near_misses(root, configuration.macros)}{''.join(usual)}"
        )
    return root


def default_root(configuration: Configuration) -> str:
    """The macro that a configuration is about.

    Raises:
      ConfigurationError: when it defines neither `MODEL` nor `ARCHITECTURE`.
    """
    for macro in ROOTS:
        if macro in configuration:
            return macro
    raise ConfigurationError(
        f"{', '.join(map(str, configuration.files))} define neither {' nor '.join(ROOTS)}; expected one of them. "
        f"Name the macro to build with root=...; defined are: {', '.join(sorted(configuration.macros)) or 'none'}."
    )
