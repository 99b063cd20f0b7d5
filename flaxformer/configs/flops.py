"""Counting the floating-point operations of matrix products and convolutions in a traced function."""

import math
from typing import Any

import jax


def matmul_flops(jaxpr: Any) -> int:
    """The operations of all products in `jaxpr`, a multiplication and an addition as two.

    Bodies of scans count once per iteration; of the branches of a conditional the costliest counts; a `while` loop,
    whose iterations nobody knows, counts once.

    >>> import jax.numpy as jnp
    >>> matmul_flops(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 5))))
    60
    """
    return sum(_equation_flops(equation) for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns)


def _equation_flops(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * inner * equation.outvars[0].aval.size
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2 * equation.outvars[0].aval.size * (kernel.size // features)
    inner = [matmul_flops(value) for value in _jaxprs(params)]
    return max(inner, default=0) if name == "cond" else params.get("length", 1) * sum(inner) if inner else 0


def _jaxprs(params: dict[str, Any]) -> list[Any]:
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda value: hasattr(value, "eqns"))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns") or hasattr(getattr(leaf, "jaxpr", None), "eqns")]
