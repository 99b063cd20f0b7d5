"""Position scores that look at the inputs and not only at where they stand."""

import abc

from flaxformer.types import Array


class RichAttentionApi(metaclass=abc.ABCMeta):
    """What a module must offer to bias attention by the inputs of queries and keys."""

    @abc.abstractmethod
    def __call__(
        self, q_inputs: Array, k_inputs: Array, bidirectional: bool = True, is_cross_attention: bool = False
    ) -> Array:
        """The bias `[B N T S]` between queries and keys.

        Args:
          q_inputs: what queries are projected from, `[B T D]`.
          k_inputs: what keys are projected from, `[B S D]`.
          bidirectional: whether keys may lie after queries.
          is_cross_attention: whether keys come from the encoder.
        """
