"""Requests of differing lengths in few shapes: every shape is compiled once, whatever comes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from flaxformer.decoding.prompts import ENCODER_TOKENS, PROMPT_TOKENS, VALID


def bucket_size(size: int, buckets: Sequence[int] | None = None) -> int:
    """The least bucket that holds `size`; powers of two unless buckets are given.

    >>> bucket_size(5), bucket_size(5, (6, 12))
    (8, 6)

    Raises:
      ValueError: when none is large enough.
    """
    if buckets is None:
        return 1 << max(size - 1, 0).bit_length()
    fitting = [bucket for bucket in buckets if bucket >= size]
    if not fitting:
        raise ValueError(f"the longest row has {size} tokens; expected at most {max(buckets)}, the largest bucket.")
    return min(fitting)


def pad_rows(
    rows: Sequence[Sequence[int]], buckets: Sequence[int] | None = None, pad_id: int = 0, batch: int | None = None
) -> tuple[Int[np.ndarray, "B L"], np.ndarray]:
    """Rows of differing lengths as one array with L from `buckets`, and which entries are real.

    >>> pad_rows([[7, 8, 9], [7]])[0]
    array([[7, 8, 9, 0],
           [7, 0, 0, 0]], dtype=int32)

    Args:
      rows: token ids.
      buckets: permitted lengths; None: powers of two.
      pad_id: fills up.
      batch: rows of the result; copies of the last row fill up what is missing, so that no row is empty.

    Raises:
      ValueError: for no rows, more of them than `batch`, or a row longer than every bucket.
    """
    if not len(rows) or (batch is not None and len(rows) > batch):
        raise ValueError(
            f"there are {len(rows)} rows; expected at least one{'' if batch is None else f' and at most {batch}'}."
        )
    rows = [*rows, *[rows[-1]] * ((batch or len(rows)) - len(rows))]
    length = bucket_size(max(1, *(len(row) for row in rows)), buckets)
    valid = np.arange(length) < np.array([[len(row)] for row in rows])
    tokens = np.full(valid.shape, pad_id, np.int32)
    for target, row in zip(tokens, rows, strict=True):
        target[: len(row)] = row
    return tokens, valid


def bucketed(
    prompts: Sequence[Sequence[int]] | None = None,
    sources: Sequence[Sequence[int]] | None = None,
    buckets: Sequence[int] | None = None,
    pad_id: int = 0,
    batch: int | None = None,
    source_pad_id: int = 0,
) -> dict[str, np.ndarray]:
    """`inputs` for `generate`, `stream` and `score` from rows of differing lengths.

    Inputs of the same bucket share their compilation, be their rows full or not: the entry `valid` is always there.

        inputs = bucketed(sources=[[8, 9, 1], [5, 1]], buckets=(16, 64, 256), batch=8)

    Args:
      prompts: what the decoder reads first, if anything.
      sources: what the encoder reads, if there is one.
      buckets: permitted lengths of either; None: powers of two.
      pad_id: pads prompts.
      batch: rows to fill up to, see `pad_rows`.
      source_pad_id: pads sources: the model's `padding_id`.

    Raises:
      ValueError: when both are missing, or differ in number.
    """
    if (prompts is None and sources is None) or (
        prompts is not None and sources is not None and len(prompts) != len(sources)
    ):
        numbers = [None if rows is None else len(rows) for rows in (prompts, sources)]
        raise ValueError(
            f"{numbers[0]} prompts and {numbers[1]} sources were given; expected rows, equally many of both."
        )
    inputs = {}
    if sources is not None:
        inputs[ENCODER_TOKENS], _ = pad_rows(sources, buckets, source_pad_id, batch)
    if prompts is not None:
        inputs[PROMPT_TOKENS], inputs[VALID] = pad_rows(prompts, buckets, pad_id, batch)
    return inputs
