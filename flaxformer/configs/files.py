"""Finding gin files: the user's own first, then those shipped with the library.

In a checkout the shipped files lie in the top-level `gin/`; a wheel carries them as `flaxformer/configs/files/`.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from flaxformer.configs.errors import ConfigurationError, near_misses
from flaxformer.configs.old_names import FILES, without_prefix

PathLike = str | os.PathLike[str]


def folder() -> Path:
    """The folder with the shipped gin files, for `gin.add_config_file_search_path` when gin itself reads them."""
    packaged = Path(__file__).parent / "files"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "gin"


def shipped() -> list[str]:
    """The names of the shipped files as `load` takes them, for example `'t5_1_1/small'`."""
    root = folder()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.gin"))


def find(name: PathLike, search_paths: Sequence[PathLike] = ()) -> Path:
    """The file that `name` means.

    Args:
      name: a path, or the name of a shipped file; `.gin` may be left out.
      search_paths: folders to look in before the working directory, the shipped files and the folder that holds the
        package.

    Raises:
      ConfigurationError: when there is no such file, with the places looked at and the shipped names that are close.
    """
    looked = list(_candidates(Path(name), search_paths))
    for path in looked:
        if path.is_file():
            return path
    text = Path(name).as_posix()
    raise ConfigurationError(
        f"no gin file {text!r}; looked for {', '.join(str(path) for path in looked)}. "
        f"Give a path or the name of a shipped file: {near_misses(text.removesuffix('.gin'), shipped())}"
    )


def _candidates(name: Path, search_paths: Sequence[PathLike]) -> Iterator[Path]:
    folders = [*map(Path, search_paths), Path(), folder(), Path(__file__).parents[2]]
    for parent in [Path()] if name.is_absolute() else dict.fromkeys(folders):
        yield parent / name
        if name.suffix != ".gin":
            yield parent / f"{name}.gin"
    old = without_prefix(name.as_posix())
    if old in FILES:  # google/flaxformer's or T5X's path of a shipped file
        yield folder() / FILES[old]
