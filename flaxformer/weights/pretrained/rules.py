"""Tables between their names and ours, read in both directions.

    Rule("h.{i}.attn.c_proj.weight", "decoder/layers_{i}/self_attention/out/kernel")

`{i}` stands for a number; our model says which there are. Where several of their arrays are one of ours, our path ends
in `/{n}`, entry n of its first axis:

    Rule("experts.{n}.w1.weight", "decoder/layers_{i}/mlp/expert/wi_0/kernel/{n}", Transposed())

A rule that none of the model's parameters matches says nothing about this model, so one table serves all variants of a
family.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.transforms import Same, Transform, Transposed, entry, stacked

Shapes = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One of their arrays and the one or several of ours that it is.

    Attributes:
      theirs: the name, with placeholders.
      ours: the path or paths, with the same placeholders.
      transform: see `transforms`.
      absent: makes ours from its shape where the file leaves the array out; without, it must be there.
    """

    theirs: str
    ours: str | tuple[str, ...]
    transform: Transform = Same()
    absent: Callable[[tuple[int, ...]], np.ndarray] | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def places(self, names: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Their name and our paths for each match in our `names`."""
        for match in map(_pattern(self.paths[0]).fullmatch, names):
            if match is not None:
                numbers = match.groupdict()
                yield self.theirs.format(**numbers), tuple(path.format(**numbers) for path in self.paths)


def linear(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of one of torch's linear layers: `weight [out in]`, and `bias` where our model has one."""
    return Rule(f"{theirs}.weight", f"{ours}/kernel", Transposed()), Rule(f"{theirs}.bias", f"{ours}/bias")


def norm(theirs: str, ours: str) -> tuple[Rule, Rule]:
    """The rules of a norm: `weight`, and `bias` where our model has one."""
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")


def table(*rules: Rule | Sequence[Rule]) -> tuple[Rule, ...]:
    """Rules and groups of rules as one table."""
    return tuple(one for rule in rules for one in ([rule] if isinstance(rule, Rule) else rule))


def to_ours(
    rules: Sequence[Rule], theirs: Mapping[str, StoredArray], wanted: Shapes, unused: Sequence[str], where: object
) -> dict[str, StoredArray]:
    """Our parameters by path.

    Args:
      rules: the family's table.
      theirs: the file's arrays.
      wanted: our paths and what has their shapes.
      unused: patterns of their names that carry nothing.
      where: for messages.

    Raises:
      CheckpointError: a `ValueError` that lists every missing, unexpected and mis-shaped array.
    """
    whole = wanted
    wanted = _with_entries(rules, wanted, lambda array, n: jax.ShapeDtypeStruct(array.shape[1:], array.dtype))
    found: dict[str, Any] = {}
    problems, read = [], set()
    for rule in rules:
        for name, paths in rule.places(wanted):
            shapes = [tuple(wanted[path].shape) for path in paths]
            expected = tuple(rule.transform.shape(shapes))
            read.add(name)
            if name in theirs and tuple(theirs[name].shape) == expected:
                found |= zip(paths, rule.transform.load(theirs[name], shapes), strict=True)
                continue
            found |= dict.fromkeys(paths)
            if name in theirs:
                problems.append(f"{name} is {list(theirs[name].shape)}, expected {list(expected)}")
            elif rule.absent is not None:
                found[paths[0]] = StoredArray.of(rule.absent(shapes[0]), name)
            else:
                problems.append(f"missing {name} {list(expected)}")
    carried = [name for name in theirs if not any(re.fullmatch(pattern, name) for pattern in unused)]
    problems += [f"unexpected {name} {list(theirs[name].shape)}" for name in carried if name not in read]
    problems += [f"no rule gives {path}" for path in wanted if path not in found]
    if problems:
        raise CheckpointError(
            f"the weights in {where} do not fit the model that its config.json describes; expected the same names and "
            "shapes. The differences:\n  " + "\n  ".join(sorted(problems))
        )
    return {path: _whole(found, path, array.shape) for path, array in whole.items()}


def to_theirs(rules: Sequence[Rule], ours: Mapping[str, StoredArray]) -> dict[str, StoredArray]:
    """Their arrays by name, from ours by path.

    Raises:
      CheckpointError: a `ValueError`, for parameters that no rule names.
    """
    ours = _with_entries(rules, ours, entry)
    theirs, used = {}, set()
    for rule in rules:
        for name, paths in rule.places(ours):
            theirs[name] = rule.transform.save([ours[path] for path in paths])
            used |= set(paths)
    left = sorted(ours.keys() - used)
    if left:
        raise CheckpointError(
            f"the parameters {', '.join(left[:10])} have no name in Hugging Face's form of this family; expected those "
            "of a model that load_pretrained builds. Take them out, for example by merging adapters."
        )
    return theirs


def _with_entries(rules: Sequence[Rule], arrays: Mapping[str, Any], take: Callable[[Any, int], Any]) -> dict[str, Any]:
    """The arrays by path, and in the place of those whose entries the rules name, these: `path/0`, `path/1`, ..."""
    paths = (path for rule in rules for path in rule.paths)
    split = [_pattern(path.removesuffix("/{n}")) for path in paths if path.endswith("/{n}")]
    found = {}
    for path, array in arrays.items():
        if any(pattern.fullmatch(path) for pattern in split):
            found |= {f"{path}/{n}": take(array, n) for n in range(array.shape[0])}
        else:
            found[path] = array
    return found


def _whole(found: Mapping[str, Any], path: str, shape: Sequence[int]) -> Any:
    """What was found for a path, or for the entries of its array."""
    return found[path] if path in found else stacked([found[f"{path}/{n}"] for n in range(shape[0])])


def _pattern(path: str) -> re.Pattern[str]:
    """Matches a path with numbers in the place of its placeholders, and names these."""
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(path)))
