import io

import rich.console

from flaxformer.demo.g2p.decode import Hypothesis
from flaxformer.demo.g2p.evaluate import Score
from flaxformer.demo.g2p.report import rates, samples


def printed(table, **options):
    console = rich.console.Console(file=io.StringIO(), width=100, **options)
    console.print(table)
    return console.file.getvalue()


def test_rates_are_percentages_of_both_strategies():
    text = printed(rates(Score(1200, 600, 10, 100), Score(1200, 480, 9, 100), "beam 4"))
    assert "1,200 held-out words" in text
    assert all(part in text for part in ("10.00%", "50.00%", "beam 4", "9.00%", "40.00%"))


def test_samples_show_hypotheses_best_first_and_mark_the_right_ones():
    hypotheses = {"live": [Hypothesis(("L", "IH", "V"), -0.5), Hypothesis(("L", "EH", "V"), -2.0)]}
    references = {"live": (("L", "AY", "V"), ("L", "IH", "V"))}
    lines = printed(samples(["live"], hypotheses, references)).splitlines()
    (first,) = [line for line in lines if "L IH V" in line and "-0.50" in line]
    assert "live" in first and "L AY V" in first
    coloured = printed(samples(["live"], hypotheses, references), force_terminal=True, color_system="standard")
    assert "\x1b[32m -0.50  L IH V" in coloured and "\x1b[32m -2.00" not in coloured
