"""The gin file of the library's own variants."""

from pathlib import Path

import jax
import pytest

from benchmarks import attention
from benchmarks.attention import contenders
from benchmarks.attention.workload import Workload
from flaxformer import configs

FILE = Path(attention.__file__).parent / "variants.gin"
VARIANTS = contenders.from_gin(configs.read(FILE, ["HEADS = 2", "HEAD_DIM = 4"], macros=contenders.MACROS))


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_attend(name):
    workload, contender = Workload(length=8, heads=2, head_dim=4), VARIANTS[name]

    def attend(arrays):
        return contender.attend(workload, *contender.inputs(workload, arrays))

    made = jax.eval_shape(attend, workload.arrays())
    assert made.shape == ((1, 8, 8) if isinstance(contender, contenders.Layer) else (1, 8, 2, 4))
