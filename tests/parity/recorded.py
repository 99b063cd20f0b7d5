"""What Hugging Face computed for tiny random checkpoints, and the same calls of our models.

A *case* is one call of theirs, named in `io.npz` as `<case>.in.<argument>` and `<case>.out.<name>`. All cases of a
family run here as rows of one batch, padded on the right, so that a family costs one compilation.
"""

import functools
import pathlib

import jax
import numpy as np

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
TOLERANCE = 1e-4  # absolute, and relative to the value


class Recorded:
    """The cases of a family."""

    def __init__(self, family):
        self.folder = FIXTURES / family
        with np.load(self.folder / "io.npz") as file:
            self.arrays = {name: file[name] for name in file.files}
        self.cases = list(dict.fromkeys(name.split(".")[0] for name in self.arrays))

    def given(self, case, name):
        """An argument of theirs, or None."""
        return self.arrays.get(f"{case}.in.{name}")

    def gave(self, case, name):
        """An output of theirs, or a list of those that are numbered."""
        if f"{case}.out.{name}" in self.arrays:
            return self.arrays[f"{case}.out.{name}"]
        numbered = [key for key in self.arrays if key.startswith(f"{case}.out.{name}.")]
        return [self.arrays[f"{case}.out.{name}.{i}"] for i in range(len(numbered))] or None


def batched(arrays, fill=0):
    """Arrays `[b n]` of differing lengths as one `[B N]`, and the rows of each."""
    width, start, rows = max(a.shape[1] for a in arrays), 0, []
    out = np.full((sum(len(a) for a in arrays), width), fill, np.int32)
    for array in arrays:
        out[start : start + len(array), : array.shape[1]] = array
        rows.append(slice(start, start + len(array)))
        start += len(array)
    return out, rows


def shifted(labels, start, pad):
    """The decoder's inputs for labels: right behind the start token, with padding for -100."""
    ids = np.concatenate([np.full((len(labels), 1), start), labels[:, :-1]], axis=1)
    return np.where(ids == -100, pad, ids)


def cross_entropy(logits, labels):
    """The mean over labels that are not -100."""
    kept = labels != -100
    scores = logits - jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)
    chosen = np.take_along_axis(np.asarray(scores), np.where(kept, labels, 0)[..., None], -1)[..., 0]
    return -(chosen * kept).sum() / kept.sum()


def is_recorded_part(module, method):
    """Whether a module's output is a hidden state: the embedded input, each layer's output, the final norm's."""
    kept = ("layers_", "input_dropout", "encoder_norm", "decoder_norm")
    return (
        method == "__call__"
        and (module.name or "").startswith(kept)
        and module.scope.path[-2] in ("encoder", "decoder")
    )


@functools.partial(jax.jit, static_argnums=0)
def applied(model, variables, inputs):
    """One call, with hidden states and attention weights captured."""
    return model.apply(
        variables,
        **inputs,
        enable_dropout=False,
        capture_intermediates=is_recorded_part,
        mutable=["intermediates", "attention"],
    )


def hidden_states(captured, stack, norm=True):
    """The states of a stack in the order of theirs; their last one is behind the final norm, if any and `norm`.

    A layer that runs several times (there is only one kind of them in such fixtures) gives several.
    """
    states = {
        name: value["__call__"] for name, value in captured["intermediates"][stack].items() if "__call__" in value
    }
    layers = [state for name in _layers(states) for state in states[name]]
    last = (states.get(f"{stack}_norm") if norm else None) or layers[-1:]
    return [*states["input_dropout"], *layers[:-1], *last]


def attention_weights(captured, stack, part):
    """The weights of one attention in every layer."""
    layers = captured["attention"][stack]
    return [weights for name in _layers(layers) for weights in layers[name][part]["weights"]]


def _layers(names):
    return sorted((name for name in names if name.startswith("layers_")), key=lambda name: int(name[7:]))


def close(ours, theirs, where=None):
    """The largest excess over the tolerance's measure, |difference| / (1 + |value|), of arrays `[b ...]`.

    `ours` may be longer on any axis; `where [b n]` says which positions mean something.
    """
    ours = np.asarray(ours)[tuple(slice(0, size) for size in theirs.shape)]
    error = np.abs(ours - theirs) / (1 + np.abs(theirs))
    if where is not None:
        error = error[where.astype(bool)]
    worst = float(error.max())
    assert worst <= TOLERANCE, worst
    return worst


def close_weights(ours, theirs, where):
    """As `close`, for weights `[b N T S]`."""
    return close(np.moveaxis(np.asarray(ours), 1, 2), np.moveaxis(theirs, 1, 2), where)


def or_ones(mask, ids):
    """`mask`, or that of a call without one: everything is visible."""
    return np.ones_like(ids) if mask is None else mask
