"""Medians, ratios and verdicts of the engine benchmark."""

import json

from benchmarks.measure.report import (
    OURS,
    Results,
    Target,
    as_markdown,
    engines_table,
    targets,
    targets_table,
)


def results_of(**tpots: list[float]) -> Results:
    results = Results()
    for engine, values in tpots.items():
        for value in values:
            results.add("tpot", "bf16", engine, value)
    return results


def test_the_ratio_is_of_our_median_to_the_best_peers_median() -> None:
    results = results_of(firstlight=[0.008, 0.100, 0.008], slow=[0.020], fast=[0.010, 0.001, 0.010])

    assert results.ratio("tpot", "bf16", lower_is_better=True) == 0.8
    assert results.ratio("tpot", "bf16", lower_is_better=False) == 0.4


def test_there_is_no_ratio_without_peers_or_without_ours() -> None:
    assert results_of(firstlight=[1.0]).ratio("tpot", "bf16", lower_is_better=True) is None
    assert results_of(peer=[1.0]).ratio("tpot", "bf16", lower_is_better=True) is None


def test_a_target_is_met_at_its_limit_and_missed_beyond_it() -> None:
    assert Target("", 0.8, 0.8, is_most=True).verdict == "met"
    assert Target("", 0.8, 0.81, is_most=True).verdict == "missed"
    assert Target("", 1.3, 1.3, is_most=False).verdict == "met"
    assert Target("", 1.3, 1.29, is_most=False).verdict == "missed"
    assert Target("", 1.3, None, is_most=False).verdict == "not measured"


def test_what_was_not_measured_is_listed_as_such() -> None:
    verdicts = [target.verdict for target in targets(results_of(firstlight=[1.0], peer=[2.0]))]

    assert verdicts[0] == "met"
    assert set(verdicts[1:]) == {"not measured"}


def test_gaps_are_judged_by_their_own_median() -> None:
    results = Results()
    results.add("gap/median", "int8", OURS, 0.010)
    results.add("gap/p99", "int8", OURS, 0.031)

    (target,) = [t for t in targets(results) if t.what.startswith("p99") and t.value is not None]

    assert (target.shown, target.verdict) == ("3.1 x", "missed")


def test_without_guesses_we_are_compared_with_peers_as_they_are() -> None:
    results = results_of(peer=[0.010])
    results.add("tpot/plain", "bf16", OURS, 0.007)

    (target,) = [t for t in targets(results) if t.value is not None]
    row = as_markdown(engines_table(results, ["peer"])).splitlines()[3]

    assert (target.what, target.shown) == ("the same without guesses, bf16", "0.7 x")
    assert row == "| the same, without guesses, ms | bf16 | 7.0 (7.0) | 10.0 (10.0) | 0.70 |"


def test_bandwidth_is_judged_without_guesses() -> None:
    results = Results()
    results.add("mbu", "bf16", OURS, 4.0)
    results.add("mbu/plain", "bf16", OURS, 0.8)

    (target,) = [t for t in targets(results) if t.what.startswith("MBU")]

    assert (target.shown.strip(), target.verdict) == ("0.8", "missed")


def test_results_survive_a_file() -> None:
    results = results_of(firstlight=[1.0, 2.0])
    results.remarks.append("vllm, int4: has no int4 for CPUs")

    assert Results.from_json(json.loads(json.dumps(results.as_json()))) == results


def test_tables_have_a_row_for_what_was_measured_only() -> None:
    results = results_of(firstlight=[0.010, 0.012, 0.014], peer=[0.024])

    text = as_markdown(engines_table(results, ["peer"]))

    assert text.splitlines()[2:] == [
        "| a token, one stream, ms | bf16 | 12.0 (10.0) | 24.0 (24.0) | 0.50 |"
    ]
    assert "| not measured |" in as_markdown(targets_table(targets(results)))
