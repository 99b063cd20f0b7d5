"""Recorded cases of the reference implementation: see tests/golden/runtime/."""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

FOLDER = pathlib.Path(__file__).parent.parent / "golden" / "runtime"


class Case(NamedTuple):
    """One recorded case.

    Attributes:
      about: the JSON document: how the reference was called.
      inputs: name -> array.
      outputs: name -> array.
    """

    about: dict[str, Any]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def load(name: str) -> Case:
    """The recorded case called `name`."""
    about = json.loads((FOLDER / f"{name}.json").read_text())
    with np.load(FOLDER / f"{name}.npz") as arrays:
        groups = [
            {key.split("/", 1)[1]: arrays[key] for key in arrays if key.startswith(f"{group}/")}
            for group in ("inputs", "outputs")
        ]
    return Case(about, *groups)
