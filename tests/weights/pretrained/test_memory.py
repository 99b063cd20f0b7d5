"""Loading needs little more memory than the parameters take."""

import json
import subprocess
import sys

import numpy as np
import pytest

from flaxformer.weights.arrays import StoredArray
from flaxformer.weights.exporting import save_safetensors
from flaxformer.weights.pretrained.files import open_weights
from tests.parity.recorded import FIXTURES

_SCRIPT = """
import resource, sys, jax
from flaxformer.weights import load_pretrained
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
load_pretrained(sys.argv[1])
before = peak()
_, variables = load_pretrained(sys.argv[2])
jax.block_until_ready(variables)
print((peak() - before) / sum(leaf.nbytes for leaf in jax.tree.leaves(variables)))
"""


@pytest.mark.slow
def test_peak_memory_stays_below_a_fifth_above_the_weights(tmp_path):
    """A GPT-2 of 110 million parameters, most of them in its token table."""
    sizes = {"n_embd": 768, "n_head": 12, "n_layer": 2, "vocab_size": 120_000}
    config = json.loads((FIXTURES / "gpt2" / "config.json").read_text()) | sizes
    (tmp_path / "config.json").write_text(json.dumps(config))
    larger = {32: 768, 96: 2304, 128: 3072, 64: 64}
    arrays = {}
    for name, array in open_weights(FIXTURES / "gpt2").items():
        shape = tuple(larger[size] for size in array.shape)
        shape = (120_000, 768) if "wte" in name else shape
        read = lambda index: np.ones([part.stop - part.start for part in index], np.float32)  # noqa: E731
        arrays[name] = StoredArray(shape, np.dtype("float32"), read, name)
    save_safetensors(tmp_path / "model.safetensors", arrays)
    command = [sys.executable, "-c", _SCRIPT, str(FIXTURES / "gpt2"), str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert float(printed) < 1.2, printed
