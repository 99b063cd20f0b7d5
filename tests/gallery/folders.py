"""What the gallery and the folders of gin files hold."""

import pathlib
import re

from flaxformer import configs

GALLERY = pathlib.Path(__file__).parents[2] / "architectures"
PAGES = sorted(path.stem for path in GALLERY.glob("*.py") if path.stem != "gallery")
NO_FAMILIES = ("demo", "parts", "t5x")  # folders of gin files
NO_SIZES = ("parts", "published", "scanned")  # files of a family
_MACRO = re.compile(r"^([A-Z][A-Z_]*) =", flags=re.MULTILINE)


def sizes(family: str) -> dict[str, set[str]]:
    """The names of a family's sizes, each with the macros that its file binds."""
    files = [path for path in (configs.folder() / family).glob("*.gin") if path.stem not in NO_SIZES]
    return {path.stem: set(_MACRO.findall(path.read_text(encoding="utf-8"))) for path in files}


def families() -> list[str]:
    return sorted(path.name for path in configs.folder().iterdir() if path.is_dir() and path.name not in NO_FAMILIES)
