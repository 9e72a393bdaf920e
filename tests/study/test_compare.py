"""Runs are grouped by what can change a score, and compared honestly."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pargolf.cli.study_tables import show_comparison
from pargolf.config.schema import RunConfig
from pargolf.config.settings import flatten, to_dict
from pargolf.study.compare import Group, compare, group_records, pareto_front, read_published, to_json
from pargolf.study.records import RunRecord
from pargolf.system.errors import UserError

NATS = math.log(2) * 2.5  # a bpb, at 2.5 bytes a token


def run(name: str, bpb: float, seed: int = 1, nats_per_bpb: float = NATS, **changes: Any) -> RunRecord:
    """A run of the published system; `model__q_rank=0` changes a setting."""
    settings = flatten(to_dict(RunConfig())) | {"train.seed": seed}
    settings |= {name.replace("__", "."): value for name, value in changes.items()}
    return RunRecord(
        name, bpb, Path("runs") / name, settings, seed, stride=64, val_loss=bpb * nats_per_bpb,
        val_bytes=1000, bytes_total=100 + seed, budget=1000, step_ms=10.0 + seed,
    )  # fmt: skip


def runs(prefix: str, scores: list[float], **changes: Any) -> list[RunRecord]:
    return [run(f"{prefix}-seed{seed}", bpb, seed, **changes) for seed, bpb in enumerate(scores)]


def names(groups: list[Group]) -> list[list[str]]:
    return [[r.name for r in group.records] for group in groups]


BASE = runs("base", [1.160, 1.161, 1.162])
BETTER = runs("better", [1.130, 1.132, 1.131], model__q_rank=0)
ALIKE = runs("alike", [1.159, 1.163, 1.161], model__q_rank=64, optim__muon_lr=0.03)


def test_seed_paths_and_machine_do_not_tell_runs_apart() -> None:
    a, b = (
        run("a", 1.0),
        run("b", 1.0, seed=2, train__device="cuda", data__dataset="/elsewhere/fineweb10B_sp1024"),
    )
    c = run("c", 1.0, data__dataset="data/datasets/fineweb10B_sp2048")
    assert names(group_records([a, c, b])) == [["a", "b"], ["c"]]
    assert group_records([a, c])[1].label == "data.dataset=fineweb10B_sp2048"


def test_only_differing_settings_are_shown() -> None:
    groups = group_records([*BASE, *ALIKE])
    assert groups[1].settings == {"model.q_rank": 64, "optim.muon_lr": 0.03}
    base, better, alike = compare([*BASE, *BETTER, *ALIKE]).groups
    assert base.label == "model.q_rank=192, optim.muon_lr=0.02"
    assert better.label == "model.q_rank=0"
    assert alike.label == "model.q_rank=64, optim.muon_lr=0.03"


def test_the_stack_s_name_is_told_where_it_differs() -> None:
    def made_of(preset: str, records: list[RunRecord]) -> list[RunRecord]:
        return [dataclasses.replace(record, preset=preset) for record in records]

    demo, overlay = made_of("demo", BASE), made_of("demo+full", BETTER)
    groups = compare([*demo, *overlay, *ALIKE]).groups
    assert [group.label for group in groups] == [
        "demo (model.q_rank=192, optim.muon_lr=0.02)", "demo+full (model.q_rank=0)",
        "model.q_rank=64, optim.muon_lr=0.03",
    ]  # fmt: skip
    assert compare([*demo, *overlay], "demo+full").reference == "demo+full (model.q_rank=0)"
    # No name tells apart what is made of one stack, or tells what is made of several.
    assert compare(made_of("demo", [*BASE, *BETTER])).groups[1].label == "model.q_rank=0"
    mixed = compare([*made_of("demo", BASE[:1]), *made_of("mine.toml", BASE[1:]), *BETTER]).groups
    assert len(mixed) == 2 and mixed[0].label == "model.q_rank=192"


def test_the_stride_that_was_scored_counts_and_not_the_setting() -> None:
    a, b = run("a", 1.0), RunRecord(**{**vars(run("b", 1.0)), "stride": 1024})
    assert [g.settings for g in group_records([a, b])] == [{"eval.stride": 64}, {"eval.stride": 1024}]


def test_runs_of_unknown_settings_are_grouped_by_name() -> None:
    foreign = [RunRecord(name, 1.0) for name in ("theirs-seed42", "theirs_seed7", "other", "theirs-seed1")]
    assert names(group_records(foreign)) == [["theirs-seed42", "theirs_seed7", "theirs-seed1"], ["other"]]
    assert [g.label for g in group_records([*foreign, run("mine", 1.0)])][:2] == ["theirs", "other"]


def test_a_group_sums_up_its_runs() -> None:
    (group,) = group_records(BASE)
    assert group.val_bpb == pytest.approx(1.161)
    assert group.val_bpb_std == pytest.approx(0.001)
    assert group.val_loss == pytest.approx(1.161 * NATS)
    assert (group.bytes_total, group.step_ms) == (102, 11.0)  # the largest, the median


def test_differences_are_scipy_s_and_corrected_for_all_groups() -> None:
    comparison = compare([*BASE, *BETTER, *ALIKE])
    base, better, alike = comparison.groups
    assert base.difference is None
    assert better.difference and better.difference.test and alike.difference and alike.difference.test
    expected = stats.ttest_ind([1.130, 1.132, 1.131], [1.160, 1.161, 1.162], equal_var=False)
    assert better.difference.test.p == pytest.approx(expected.pvalue)
    assert better.difference.p_holm == pytest.approx(2 * expected.pvalue)
    assert alike.difference.p_holm == pytest.approx(alike.difference.test.p)
    assert better.difference.bpb == pytest.approx(-0.03)
    assert better.difference.nats == pytest.approx(-0.03 * NATS)
    assert better.difference.is_record is True
    assert alike.difference.is_record is False
    assert comparison.notes == ()


@pytest.mark.parametrize("wanted", ["better-seed1", "runs/better-seed1", "model.q_rank=0"])
def test_the_baseline_is_a_run_or_a_group(wanted: str) -> None:
    comparison = compare([*BASE, *BETTER], baseline=wanted)
    assert comparison.reference == "model.q_rank=0"
    base, better = comparison.groups
    assert better.difference is None
    assert base.difference and base.difference.bpb == pytest.approx(0.03)
    assert base.difference.is_record is False
    with pytest.raises(UserError, match="no run or group is 'nope'; there are: model"):
        compare([*BASE, *BETTER], baseline="nope")


def test_a_published_figure_is_compared_in_nats_of_the_group_s_own_tokens() -> None:
    (group,) = compare(BETTER, against=1.1748).groups
    d = group.difference
    assert d and d.test and d.nats == pytest.approx((1.131 - 1.1748) * NATS)
    assert d.test.p == pytest.approx(
        stats.ttest_1samp([1.130, 1.132, 1.131], 1.1748, alternative="less").pvalue
    )
    expected = stats.ttest_1samp(
        [x * NATS for x in (1.130, 1.132, 1.131)], 1.1748 * NATS - 0.005, alternative="less"
    )
    assert d.p_record == pytest.approx(expected.pvalue)
    with pytest.raises(UserError, match="not with both"):
        compare(BETTER, baseline="better", against=1.1748)


def test_published_figures_need_no_run_folder() -> None:
    text = "1.1548, 1.1552, 1.1575"
    (group,) = compare(read_published(text), against=1.1748).groups
    assert group.difference and group.difference.test and group.difference.test.t < -22
    assert group.difference.is_record is None  # nats of unknown tokens
    (group,) = compare(read_published(text, bytes_per_token=2.436), against=1.1748).groups
    assert group.difference and group.difference.is_record is True
    for wrong in ("", "1.1,x", "1.1,nan", "-1"):
        with pytest.raises(UserError, match="no list of val_bpb"):
            read_published(wrong)
    with pytest.raises(UserError, match="bytes a token"):
        read_published(text, bytes_per_token=0)


def test_one_run_or_no_variation_is_no_test() -> None:
    comparison = compare([*BASE, *BETTER[:1], *runs("same", [1.0, 1.0, 1.0], model__q_rank=64)])
    for group, why in zip(comparison.groups[1:], ("1 run", "no variation"), strict=True):
        d = group.difference
        assert d and d.test is d.p_holm is d.p_record is d.is_record is None
        assert why in d.no_test
        assert any(note.startswith(f"no test for {group.label}: ") for note in comparison.notes)
        assert d.bpb < 0
    (_, better) = compare([*BASE[:1], *BETTER]).groups
    assert better.difference and "the baseline has 1 run" in better.difference.no_test


def test_what_makes_figures_doubtful_is_said() -> None:
    other_tokens = [
        run(f"o{i}", 1.1 + i / 100, i, nats_per_bpb=1.5 * NATS, model__vocab_size=4096) for i in (1, 2)
    ]
    comparison = compare([*BASE, *other_tokens])
    d = comparison.groups[1].difference
    assert d and d.test and d.nats is d.is_record is None
    assert any(note.startswith("no nats for model.vocab_size=4096") for note in comparison.notes)
    doubtful = [RunRecord(**{**vars(r), "val_bytes": 999, "seed": 3, "budget": 50}) for r in BETTER]
    notes = "\n".join(compare([*BASE, *doubtful]).notes)
    for part in (
        "seed counts more than once",
        "over the budget of 50 bytes",
        "not all scored on the same text",
    ):
        assert part in notes
    with pytest.raises(UserError, match="name the runs"):
        compare([])


def test_the_table_and_the_json_say_what_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = compare([*BASE, *BETTER, *ALIKE])
    show_comparison(comparison)
    out = capsys.readouterr().out
    for part in ("model.q_rank=0", "1.1310", "-0.0300 ± ", "yes", "corrected for 2 comparisons"):
        assert part in out
    values = json.loads(json.dumps(to_json(comparison)))
    assert values["groups"][1]["records"][0]["folder"] == "runs/better-seed0"
    assert values["groups"][1]["difference"]["bpb"] == pytest.approx(-0.03)
    show_comparison(compare(BASE))
    assert "difference" not in capsys.readouterr().out


def test_runs_of_the_same_seeds_are_compared_in_pairs_too() -> None:
    noisy, moved = [1.10, 1.20, 1.30], [1.081, 1.179, 1.280]
    pairs = compare([*runs("a", noisy), *runs("b", moved, model__q_rank=0)])
    d = pairs.groups[1].difference
    assert d and d.test and d.paired
    assert d.test.p > 0.5  # drowned in what the seeds differ by
    oracle = stats.ttest_rel(moved, noisy)
    assert (d.paired.t, d.paired.df) == pytest.approx((oracle.statistic, oracle.df))
    assert d.p_paired == pytest.approx(oracle.pvalue)
    interval = oracle.confidence_interval(0.95)
    assert (d.paired.low, d.paired.high) == pytest.approx((interval.low, interval.high))
    unpaired = [
        RunRecord(**{**vars(r), "seed": 100 + i}) for i, r in enumerate(runs("c", moved, model__q_rank=7))
    ]
    d = compare([*runs("a", noisy), *unpaired]).groups[1].difference
    assert d and d.paired is None and d.p_paired is None


def test_pairs_of_several_groups_share_their_spread() -> None:
    """What groups and seeds leave unexplained, by least squares; a group of other seeds has no part."""
    a, b, c = [1.10, 1.20, 1.30], [1.081, 1.179, 1.280], [1.14, 1.25, 1.33]
    others = runs("d", [1.2, 1.4], model__q_rank=9)
    records = [*runs("a", a), *runs("b", b, model__q_rank=0), *runs("c", c, model__q_rank=7), *others]
    _, *found, short = (group.difference for group in compare(records).groups)
    assert short and short.paired is None
    of_group, of_seed = np.kron(np.eye(3), np.ones((3, 1))), np.kron(np.ones((3, 1)), np.eye(3))
    design = np.column_stack([np.ones(9), of_group[:, 1:], of_seed[:, 1:]])
    fitted, squares, *_ = np.linalg.lstsq(design, np.array(a + b + c))
    errors = np.sqrt(squares / 4 * np.diag(np.linalg.inv(design.T @ design)))
    for n, d in enumerate(found, 1):
        assert d and d.paired and d.paired.df == 4
        assert (d.bpb, d.paired.t) == pytest.approx((fitted[n], fitted[n] / errors[n]))
        assert d.paired.p == pytest.approx(2 * stats.t.sf(abs(d.paired.t), 4))
    smaller, larger = sorted((d.paired.p, d.p_paired) for d in found if d and d.paired)
    assert (smaller[1], larger[1]) == pytest.approx((2 * smaller[0], max(2 * smaller[0], larger[0])))


@pytest.mark.parametrize("copies", ["export", "eval", "no effect", "of the idea"])
def test_copies_of_one_training_make_no_idea_look_sure(copies: str) -> None:
    base, idea = [2.1603, 2.1589, 2.1631], [2.1560, 2.1598, 2.1570]
    records = [*runs("base", base), *runs("idea", idea, model__q_rank=0)]
    alternatives: dict[str, dict[str, Any]] = {
        "export": {"export__attn_bits": 5}, "eval": {"eval__documents": "apart"},
        "no effect": {"optim__muon_lr": 0.5}, "of the idea": {"export__attn_bits": 5, "model__q_rank": 0},
    }  # fmt: skip
    off = {"no effect": [0.0] * 3}.get(copies, [1e-3, 1.1e-3, 0.9e-3])
    of = idea if copies == "of the idea" else base
    copy = runs("copy", [x + d for x, d in zip(of, off, strict=True)], **alternatives[copies])
    d = compare([*records, *copy]).groups[1].difference
    assert d and d.paired
    assert d.paired.p == pytest.approx(stats.ttest_rel(idea, base).pvalue)
    # The copy itself is known as well as its own differences say.
    own = compare([*records, *copy]).groups[2].difference
    assert own and (own.paired is None if copies == "no effect" else own.paired is not None)
    if copies in ("export", "eval"):
        assert own.paired and own.paired.p < 0.01


def test_the_front_is_what_no_run_within_the_budget_beats_in_both() -> None:
    points = [
        (900, 1.0),
        (500, 1.2),
        (500, 1.1),
        (600, 1.15),
        (700, 1.1),
        (1001, 0.9),
        (None, 0.8),
        (400, 1.3),
    ]
    records = [
        dataclasses.replace(run(f"{size}-{bpb}", bpb), bytes_total=size, budget=1000) for size, bpb in points
    ]
    front = pareto_front(records)
    assert [(r.bytes_total, r.val_bpb) for r in front] == [(400, 1.3), (500, 1.1), (900, 1.0)]
    assert pareto_front([]) == []
