"""Where a token is: schemes that rotate, bias or embed, each of the three doing nothing by default."""

from flaxformer.components.positions.rotary import Rotary
from flaxformer.components.positions.scheme import PositionScheme

__all__ = ["PositionScheme", "Rotary"]
