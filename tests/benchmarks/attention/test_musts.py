import pytest

from benchmarks.attention import contenders, musts


def results(**seconds):
    """Results of every entry of the checks; `seconds` by contender, else 1."""
    return [
        {
            "name": case.result_name(entry),
            "seconds": dict.fromkeys(("median", "low", "high"), value) | {"values": [value, value]},
            "bytes": {"temporaries": 100 * musts.MIB},
        }
        for case in musts.cases()
        for entry in case.entries
        for value in [seconds.get(entry.contender, 1.0)]
    ]


def verdicts(found):
    return {check["what"]: (check["found"] and check["found"]["median"], check["verdict"]) for check in found}


def test_ratios_and_sizes_are_judged_against_both_bounds():
    found = verdicts(musts.judge(results(jax_nn=5.0, torch=0.8)))
    assert found["forward 4096: times faster than jax.nn"] == (5.0, "pass")
    assert found["backward 4096: times faster than jax.nn"] == (5.0, "aim")
    assert found["backward 8192: times faster than jax.nn"] == (5.0, "miss")
    assert found["backward 8192: MiB of temporaries"] == (100.0, "pass")
    assert found["forward 8192: times the seconds of torch"] == (1.25, "pass")
    assert found["backward 4096: lazy T5 bias, times the temporaries without"] == (1.0, "aim")
    assert found["forward 16384: window 512, times faster than full"] == (1.0, "miss")


def test_a_bound_within_the_quartiles_decides_nothing():
    found = results()
    for result in found:
        if result["name"] == "grouped-forward: blockwise forward-4096-kv_heads=1":
            result["seconds"]["values"] = [0.9, 1.3]
    found = verdicts(musts.judge(found))
    assert found["forward 4096: K = 1, times the seconds of K = 8"] == (pytest.approx(1.1), "even")


def test_the_best_of_several_counts():
    what = "forward 128: auto's seconds over the best of reference and jax.nn"
    assert verdicts(musts.judge(results(jax_nn=0.9)))[what] == (pytest.approx(1 / 0.9), "miss")
    assert verdicts(musts.judge(results(jax_nn=2.0)))[what] == (1.0, "aim")


def test_what_was_not_measured_is_said():
    found = musts.judge([result for result in results() if "torch" not in result["name"]])
    missing = {check["case"] for check in found if check["verdict"] == "not measured"}
    assert missing == {"torch-forward", "torch-backward"}
    assert len(found) == len(musts.CHECKS)


def test_cases_are_made_of_known_contenders_and_have_names_of_their_own():
    names = [case.result_name(entry) for case in musts.cases() for entry in case.entries]
    assert len(set(names)) == len(names)
    assert {entry.contender for case in musts.cases() for entry in case.entries} <= set(contenders.known())
