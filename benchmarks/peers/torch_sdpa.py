"""PyTorch's scaled dot-product attention. Its interpreter needs: pip install torch numpy

Settings, on the command line: `{"entries": {NAME: {"program": "backward", "arrays": PATH, "results": PATH, "dtype":
"float32", "causal": true}}}`. The arrays are an npz of `query`, `key`, `value`, `cotangent` (`[B T N H]`), and perhaps
`mask` and `bias`; what the first run computes is written in the same layout, with the gradients by name.
"""

import os

import numpy as np
import torch
from serve import serve, settings

LEARNED = ("query", "key", "value", "bias")


def make_task(asked):
    """The task of one entry, after writing what it computes."""
    with np.load(asked["arrays"]) as arrays:
        x = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    for name in ("query", "key", "value", "cotangent"):
        x[name] = x[name].transpose(1, 2).contiguous().to(getattr(torch, asked["dtype"]))
    learned = [x[name] for name in LEARNED if name in x]
    for leaf in learned:
        leaf.requires_grad_(asked["program"] == "backward")

    def attend():
        added = x.get("bias", x.get("mask"))
        if "bias" in x:
            added = added.to(x["query"].dtype)
            added = added.masked_fill(~x["mask"], float("-inf")) if "mask" in x else added
        grouped = x["query"].shape[1] != x["key"].shape[1]
        return torch.nn.functional.scaled_dot_product_attention(
            x["query"], x["key"], x["value"], attn_mask=added, is_causal=asked["causal"], enable_gqa=grouped
        )

    def forward():
        with torch.no_grad():
            return attend(), ()

    def backward():
        output = attend()
        return output, torch.autograd.grad(output, learned, x["cotangent"])

    task = forward if asked["program"] != "backward" else backward
    output, gradients = task()
    names = [name for name in LEARNED if name in x]
    found = {"output": output, **dict(zip(names, gradients, strict=False))}
    arrays = {name: value.detach().float() for name, value in found.items()}
    np.savez(asked["results"], **{n: (v if n == "bias" else v.transpose(1, 2)).numpy() for n, v in arrays.items()})
    return task


def make_tasks():
    """A task per entry; what is known of them is only that they run."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return {name: (make_task(asked), {}) for name, asked in settings()["entries"].items()}, 0


if __name__ == "__main__":
    serve("torch", ["torch"], make_tasks)
