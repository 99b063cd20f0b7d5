"""What goes wrong with a checkpoint, said with its file and its array."""

from flaxformer.training.checkpoints import CheckpointError

__all__ = ["CheckpointError", "damaged"]


def damaged(where: object, reason: object, what: str = "array") -> CheckpointError:
    """The error for a part of a checkpoint that cannot be read.

    Args:
      where: the file or folder, and the array in it.
      reason: what was found.
      what: the kind of part.
    """
    text = str(reason).partition("\n")[0][:300]
    return CheckpointError(
        f"the {what} {where} cannot be read: {text}. Expected a complete checkpoint: copy it again from its origin, "
        "or take another step."
    )
