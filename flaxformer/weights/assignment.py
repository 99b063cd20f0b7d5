"""Restoring under other names: T5X's assignment maps.

A map is a list of rules `(regular expression, replacement)`. For each name of the *model's* state, a path such as
`target/encoder/encoder_norm/scale`, the first rule that matches all of it says which entry of the checkpoint is read,
the replacement with its group references filled in; or, with None, that none is.

    [(r"target/decoder/.*", None), (r"target/encoder/(.*)", r"target/old_encoder/\\1")]
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flax import traverse_util

from flaxformer.weights.errors import CheckpointError

AssignmentMap = Sequence[tuple[str, str | None]]
State = dict[str, Any]


def apply_assignment_map(
    ckpt_optimizer_state: Mapping[str, Any],
    optimizer_state: Mapping[str, Any],
    assignment_map: AssignmentMap,
    require_all_rules_match: bool = True,
    *,
    is_resuming: bool = False,
) -> State:
    """The checkpoint's entries under the model's names.

    Args:
      ckpt_optimizer_state: the checkpoint's state.
      optimizer_state: the model's state; only its names matter.
      assignment_map: see the module.
      require_all_rules_match: refuse rules that match no name, which are usually misspelled.
      is_resuming: when a run goes on from its own checkpoint nothing is renamed.

    Returns:
      The renamed state. Entries that no rule read or dropped keep their names, whether the model has them or not.

    Raises:
      CheckpointError: a `ValueError`, for an entry that is not in the checkpoint and for rules without effect.

    >>> apply_assignment_map({"target": {"a": 1, "b": 2}}, {"target": {"a": 0, "c": 0}}, [("target/c", "target/b")])
    {'target': {'a': 1, 'c': 2}}
    """
    if is_resuming:
        return dict(ckpt_optimizer_state)
    there = traverse_util.flatten_dict(dict(ckpt_optimizer_state), sep="/", keep_empty_nodes=True)
    wanted = traverse_util.flatten_dict(dict(optimizer_state), sep="/", keep_empty_nodes=True)
    result, read, dropped, used = {}, set(), set(), set()
    for name in wanted:
        matches = ((re.fullmatch(pattern, name), replacement) for pattern, replacement in assignment_map)
        match, replacement = next(((found, text) for found, text in matches if found), (None, None))
        if match is None:
            result |= {name: there[name]} if name in there else {}
            continue
        used.add(match.re.pattern)
        if replacement is None:
            dropped.add(name)
            continue
        source = _source(match, replacement, there)
        read.add(source)
        result[name] = there[source]
    unused = [pattern for pattern, _ in assignment_map if pattern not in used]
    if unused and require_all_rules_match:
        raise CheckpointError(
            f"the assignment map's {unused} match no name of the model; expected each rule to match at least one. "
            f"The names are full paths such as {next(iter(wanted), 'target/encoder/encoder_norm/scale')!r}."
        )
    result |= {name: value for name, value in there.items() if name not in (*read, *dropped, *result)}
    return traverse_util.unflatten_dict(result, sep="/")


def _source(match: re.Match[str], replacement: str, there: Mapping[str, Any]) -> str:
    source = match.expand(replacement)
    if source not in there:
        raise CheckpointError(
            f"the assignment map reads {match.string!r} from {source!r} (rule {match.re.pattern!r}), which the "
            "checkpoint does not have; expected one of its names. Correct the replacement, or use None to leave the "
            "entry out."
        )
    return source


def make_assignment_map_fn(assignment_map: AssignmentMap, require_all_rules_match: bool = True) -> Any:
    """`apply_assignment_map` as one of `state_transformation_fns`: `(state, target_state, *, is_resuming=False)`.

    Args:
      assignment_map: see the module.
      require_all_rules_match: as there.
    """

    def assign(state: Mapping[str, Any], target_state: Mapping[str, Any], *, is_resuming: bool = False) -> State:
        return apply_assignment_map(
            state, target_state, assignment_map, require_all_rules_match, is_resuming=is_resuming
        )

    return assign
