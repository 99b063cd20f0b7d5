"""Attention weights of windows, as Longformer's implementation returns them.

`[b N T G+W+1]` are the weights on the G global tokens of the row, then those on the W+1 tokens of the window. Columns
of the window that are global are zero, and so are the rows of global tokens; a second array `[b N S G]` has these.
"""

import numpy as np

from tests.parity.recorded import close, close_weights


def errors(ours, theirs, global_theirs, where, flags):
    """The errors of our weights `[b N T S]`; `where` and `flags` are `[b T]`."""
    ours = np.asarray(ours)[:, :, : flags.shape[1], : flags.shape[1]]
    count = int(flags.sum(1).max())
    found = [close_weights(in_windows(ours, flags, theirs.shape[-1] - count - 1), theirs, where)]
    if global_theirs is not None:
        for row, flagged in enumerate(flags.astype(bool)):
            mine = ours[row][:, flagged]  # [N G S]
            found.append(close(mine, global_theirs[row].swapaxes(1, 2)[:, : flagged.sum(), : flags.shape[1]]))
    return found


def in_windows(weights, flags, window):
    """Our weights in their form."""
    batch, heads, length, _ = weights.shape
    count = int(flags.sum(1).max())
    out = np.zeros((batch, heads, length, count + window + 1), np.float32)
    for row in range(batch):
        flagged = np.flatnonzero(flags[row])
        out[row, :, :, : len(flagged)] = weights[row][:, :, flagged]
        for t in range(length):
            near = [s for s in range(max(0, t - window // 2), min(length, t + window // 2 + 1)) if not flags[row, s]]
            out[row, :, t, [count + window // 2 + s - t for s in near]] = weights[row][:, t, near].T
        out[row][:, flagged] = 0
    return out
