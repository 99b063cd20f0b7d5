"""Who may know whom: the loop knows no strategy, a strategy no model, a cache neither."""

import ast
from pathlib import Path

import pytest

import flaxformer

ROOT = Path(flaxformer.__file__).parent
MODELS = ("flaxformer.architectures", "flaxformer.components", "flaxformer.step", "flax.linen")
DRIVERS = tuple(
    f"flaxformer.decoding.{name}" for name in ("model_session", "loop", "speculative", "task", "generation")
)
CHOOSERS = ("flaxformer.decoding.strategies", "flaxformer.decoding.constraints")
COMMON = ("flaxformer.decoding.strategies.base", "flaxformer.decoding.strategies.rows")
ROOMS = {  # what a room does not know, and what of that it may
    "decoding/loop.py": ((*MODELS, *CHOOSERS), COMMON),
    "decoding/model_session.py": ((*CHOOSERS, "flaxformer.architectures"), ()),
    "decoding/strategies": ((*MODELS, *DRIVERS, CHOOSERS[1]), ()),
    "decoding/constraints": ((*MODELS, *DRIVERS, CHOOSERS[0]), COMMON),
    "components/attention/caches": (("flaxformer.decoding", "flaxformer.architectures"), ()),
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def within(name, packages):
    return any(f"{name}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_imports_what_it_does_not_know(room):
    unknown, common = ROOMS[room]
    place = ROOT / room
    files = [place] if place.suffix else sorted(place.glob("*.py"))
    assert files
    found = {
        (path.name, name)
        for path in files
        for name in imported(path)
        if within(name, unknown) and not within(name, (*common, f"flaxformer.{room.replace('/', '.')}"))
    }
    assert not found
