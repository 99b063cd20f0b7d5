"""Assertions about trees of arrays, with messages that name the leaf."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from tests.golden.build import Case


def flatten(tree: Any) -> dict[str, Any]:
    """The leaves of nested dicts and sequences by path, as the recorded arrays name them."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(_key(k) for k in path): leaf for path, leaf in leaves}


def flatten_axes(tree: Mapping[str, Any]) -> dict[str, list[str]]:
    """The logical axis names of a collection such as `params_axes`, by path."""
    return {path: list(leaf.names) for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def shapes(tree: Any) -> dict[str, list[Any]]:
    """Path -> [shape, dtype], as recorded."""
    return {path: [list(jnp.shape(leaf)), str(jnp.result_type(leaf))] for path, leaf in flatten(tree).items()}


def assert_arrays_match(got: Any, wanted: Mapping[str, np.ndarray], case: Case, where: str) -> None:
    """`got` has exactly the leaves `wanted`, within the case's tolerance. A bare array has the empty path."""
    leaves = flatten(got)
    assert sorted(leaves) == sorted(wanted), f"{where}: other leaves than recorded"
    for path, array in wanted.items():
        np.testing.assert_allclose(
            np.asarray(leaves[path]).astype(array.dtype),
            array,
            atol=case.tolerance,
            rtol=case.tolerance,
            err_msg=f"{where} {path}",
        )


def assert_output_matches(output: Any, case: Case, call_id: str) -> None:
    """The output of a call has the recorded values, leaves and dtypes."""
    key = f"outputs/{call_id}"
    wanted = {"": case.arrays[key]} if key in case.arrays else case.flat(key)
    assert wanted, f"nothing is recorded for {call_id}"
    assert_arrays_match(output, wanted, case, call_id)
    dtypes = {f"{call_id}/{path}".rstrip("/"): str(leaf.dtype) for path, leaf in flatten(output).items()}
    recorded = case.description.get("output_dtypes", {})
    assert dtypes == {name: recorded.get(name, dtype) for name, dtype in dtypes.items()}


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))))
