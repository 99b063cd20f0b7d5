"""Several of their arrays that are one of ours."""

import numpy as np
import pytest

from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.errors import CheckpointError
from flaxformer.weights.pretrained.rules import Rule, to_ours, to_theirs
from flaxformer.weights.pretrained.transforms import Transposed

RULES = (Rule("layer.{i}.expert.{n}.weight", "layers_{i}/expert/kernel/{n}", Transposed()), Rule("table", "table"))
OURS = {
    "layers_0/expert/kernel": np.arange(24.0).reshape(2, 3, 4),  # [expert in out]
    "layers_1/expert/kernel": -np.arange(36.0).reshape(3, 3, 4),
    "table": np.ones(2),
}


def stored(arrays):
    return {name: StoredArray.of(array) for name, array in arrays.items()}


THEIRS = to_theirs(RULES, stored(OURS))


def test_each_entry_is_one_of_theirs():
    assert sorted(THEIRS) == [
        *(f"layer.{i}.expert.{n}.weight" for i, n in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))),
        "table",
    ]
    np.testing.assert_array_equal(THEIRS["layer.1.expert.2.weight"], OURS["layers_1/expert/kernel"][2].T)


def test_entries_come_back_as_one_and_may_be_read_in_parts():
    loaded = to_ours(RULES, THEIRS, OURS, (), "here")
    assert loaded.keys() == OURS.keys()
    for path, array in OURS.items():
        np.testing.assert_array_equal(loaded[path], array)
    part = (slice(1, 3), slice(0, 2), slice(1, 4))
    np.testing.assert_array_equal(loaded["layers_1/expert/kernel"].read(part), OURS["layers_1/expert/kernel"][part])


def test_every_entry_that_does_not_fit_is_named():
    theirs = {name: array for name, array in THEIRS.items() if name != "layer.1.expert.2.weight"}
    theirs |= stored({"layer.0.expert.1.weight": np.ones((4, 2)), "layer.0.expert.2.weight": np.ones((4, 3))})
    with pytest.raises(CheckpointError) as caught:
        to_ours(RULES, theirs, OURS, (), "here")
    assert str(caught.value).split("The differences:\n")[1].split("\n") == [
        "  layer.0.expert.1.weight is [4, 2], expected [4, 3]",
        "  missing layer.1.expert.2.weight [4, 3]",
        "  unexpected layer.0.expert.2.weight [4, 3]",
    ]
