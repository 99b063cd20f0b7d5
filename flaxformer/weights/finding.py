"""Finding checkpoints, and telling their forms apart."""

from __future__ import annotations

import enum
import os
import pathlib
import re

from flaxformer.weights import documents, orbax_tree
from flaxformer.weights.errors import CheckpointError

DOCUMENT = "checkpoint"
_NAME = re.compile(r"checkpoint_(\d+)")
_EARLY_NAME = re.compile(r"\d+")
_UNFINISHED = re.compile(r".+\.tmp(-\d+)?|.+\.orbax-checkpoint-tmp.*")


class CheckpointType(enum.Enum):
    """The forms of a checkpoint."""

    T5X = "t5x"
    ORBAX_EARLY = "orbax_early"
    ORBAX = "orbax"
    TENSORFLOW = "tensorflow"


def detect_checkpoint_type(path: str | os.PathLike) -> CheckpointType:
    """The form of the checkpoint at `path`, a folder or a msgpack document, by what it holds.

    Raises:
      CheckpointError: a `ValueError`, when there is none.
    """
    place = pathlib.Path(path)
    folder = place if place.is_dir() else place.parent
    if orbax_tree.item_of(folder) is not None and (place.is_dir() or place.name == DOCUMENT):
        return CheckpointType.ORBAX
    document = place / DOCUMENT if place.is_dir() else place
    if not document.is_file():
        raise CheckpointError(
            f"{place} is no checkpoint: it has neither a file {DOCUMENT!r} nor {orbax_tree.METADATA!r}; "
            "expected one of T5X's forms."
        )
    with document.open("rb") as file:
        if file.read(21) == b"model_checkpoint_path":
            return CheckpointType.TENSORFLOW
    return CheckpointType.ORBAX_EARLY if documents.holds_placeholders(document) else CheckpointType.T5X


def steps_in(folder: str | os.PathLike) -> dict[int, pathlib.Path]:
    """The checkpoints in a model's folder by step, ascending.

    They are named `checkpoint_<step>`; in the early orbax form by the bare step. What is still being written has a
    longer name.
    """
    found = {}
    for path in pathlib.Path(folder).iterdir():
        if name := _NAME.fullmatch(path.name):
            found[int(name[1])] = path
        elif _EARLY_NAME.fullmatch(path.name) and (path / DOCUMENT).is_file():
            found.setdefault(int(path.name), path)
    return dict(sorted(found.items()))


def find_checkpoint(path: str | os.PathLike, step: int | None = None) -> pathlib.Path:
    """The checkpoint that `path` means: a folder, or a msgpack document.

    Args:
      path: a model's folder with checkpoints in it, one checkpoint's folder, or its msgpack document.
      step: which of a model's checkpoints; the latest when None.

    Raises:
      CheckpointError: a `ValueError`, when nothing is there, with what is.
    """
    if "://" in os.fspath(path):
        raise CheckpointError(f"{path} lies elsewhere; expected a local path. Copy it first, e.g. by gsutil -m cp -r.")
    place = pathlib.Path(path)
    if not place.exists():
        raise CheckpointError(f"{place} does not exist; expected a checkpoint or a folder of checkpoints.")
    if _UNFINISHED.fullmatch(place.name):
        raise CheckpointError(f"{place} was never finished: writers take the suffix off. Use an earlier step.")
    if place.is_file() or (place / DOCUMENT).is_file() or orbax_tree.item_of(place) is not None:
        return _of_step(place, step)
    found = steps_in(place)
    if not found or step is not None and step not in found:
        wanted = "any" if step is None else f"step {step}"
        there = f"those of the steps {', '.join(map(str, found))}" if found else "none (checkpoint_<step>)"
        raise CheckpointError(f"{place} holds no such checkpoint: wanted {wanted}, found {there}. Correct the path.")
    return found[max(found) if step is None else step]


def _of_step(place: pathlib.Path, step: int | None) -> pathlib.Path:
    folder = place.parent if place.name == DOCUMENT else place
    name = re.fullmatch(r"(?:checkpoint_)?(\d+)", folder.name)
    if step is not None and name and int(name[1]) != step:
        raise CheckpointError(f"{place} is the checkpoint of step {name[1]}; expected step {step}. Leave one out.")
    return place
