"""Assignment maps rename, drop, share and keep entries as T5X's do."""

import pytest

from flaxformer.weights.t5x import apply_assignment_map, make_assignment_map_fn

THERE = {"target": {"encoder": {"w": 1, "b": 2}, "head": {"w": 3}}, "state": {"step": 4, "param_states": {"e": {}}}}
MODEL = {"target": {"encoder": {"w": 0, "b": 0}, "other": {"w": 0}}, "state": {"step": 0}}


def test_names_without_a_rule_are_copied_and_the_rest_kept():
    assert apply_assignment_map(THERE, MODEL, []) == THERE


def test_a_rule_reads_another_entry_which_goes_with_its_old_name():
    got = apply_assignment_map(THERE, MODEL, [(r"target/oth(er)/(.*)", r"target/head/\2")])
    assert got == {**THERE, "target": {"encoder": {"w": 1, "b": 2}, "other": {"w": 3}}}


def test_the_first_rule_that_matches_the_whole_name_applies():
    rules = [("target/encoder", None), ("target/encoder/w", "target/head/w"), ("target/encoder/.*", None)]
    got = apply_assignment_map(THERE, MODEL, rules, require_all_rules_match=False)
    assert got["target"] == {"encoder": {"w": 3}}


def test_two_names_may_read_one_entry():
    rules = [("target/other/w", "target/encoder/w"), ("target/encoder/b", "target/encoder/w")]
    got = apply_assignment_map(THERE, MODEL, rules)
    assert got["target"] == {"encoder": {"w": 1, "b": 1}, "other": {"w": 1}, "head": {"w": 3}}


def test_dropped_entries_are_not_kept():
    assert "encoder" not in apply_assignment_map(THERE, MODEL, [("target/encoder/.*", None)])["target"]


def test_an_entry_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="reads 'target/other/w' from 'target/none/w'.*does not have"):
        apply_assignment_map(THERE, MODEL, [("target/other/(.)", r"target/none/\1")])


def test_a_rule_without_effect_is_refused_unless_allowed():
    rules = [("target/encodr/.*", None)]
    with pytest.raises(ValueError, match=r"\['target/encodr/\.\*'\] match no name.*target/encoder/w"):
        apply_assignment_map(THERE, MODEL, rules)
    assert apply_assignment_map(THERE, MODEL, rules, require_all_rules_match=False) == THERE


def test_a_resumed_run_is_not_renamed():
    function = make_assignment_map_fn([("target/other/w", "target/head/w")])
    assert function(THERE, MODEL, is_resuming=True) == THERE
    assert function(THERE, MODEL)["target"]["other"] == {"w": 3}
