import pytest

from flaxformer.decoding import BeamSearch, BrevityPenalty, LengthPenalty


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="early_stopping is 'always'; expected True, False or 'never'"):
        BeamSearch(2, rule=LengthPenalty(1.0, "always")).check(1)
    with pytest.raises(ValueError, match="alpha is 0.5 and rule is .*; expected one of them"):
        BeamSearch(2, alpha=0.5, rule=BrevityPenalty(0.5)).check(1)
