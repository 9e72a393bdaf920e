"""Groups of runs against a baseline, with the statistics that say what to believe.

The methods and their reasons are in docs/experiments.md.
"""

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pargolf.challenge import RECORD_LEVEL, RECORD_NATS
from pargolf.config.settings import Settings
from pargolf.study.records import RunRecord
from pargolf.study.statistics import Reference, TTest, holm, p_better_by, paired_tests, t_test, why_no_test
from pargolf.system.errors import UserError

# Settings that change neither what a model learns nor how it scores, except by the machine's rounding.
NOT_COMPARED = frozenset(
    {
        "train.seed", "train.device", "train.threads", "train.compile",
        "train.compile_warmup_steps", "train.compile_cache", "train.log_every", "train.val_every",
        "train.checkpoint_every", "train.track", "data.corpus", "eval.batch_rows", "eval.compressors",
    }
)  # fmt: skip
PATHS = frozenset({"data.dataset", "data.tokenizer"})  # compared by their last part
RUN = "run"  # stands for the settings of a run that knows none: its name without the seed


@dataclass(frozen=True)
class Difference:
    """A group against the reference: group minus reference, so negative is better."""

    bpb: float
    nats: float | None
    """Of val_loss, a token; None where it is unknown or the tokenizers differ."""
    test: TTest | None
    """Of `bpb`."""
    no_test: str
    """Why there is none, or empty."""
    p_holm: float | None
    """The test's p, corrected for all groups tested."""
    paired: TTest | None
    """Of `bpb` seed by seed, where both groups have the same seeds; see `paired_tests`."""
    p_paired: float | None
    """Its p, corrected for all groups tested so."""
    p_record: float | None
    """p of "better by less than 0.005 nats", one-sided, corrected likewise."""
    is_record: bool | None
    """The challenge's criterion for a new record; None where it cannot be tested."""


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, and what they have in common."""

    label: str
    settings: Settings
    """Only those in which the compared groups differ."""
    preset: str
    """The stack its runs were made of, if they agree in it and the compared groups do not; else empty."""
    records: tuple[RunRecord, ...]
    val_bpb: float
    """Mean over the runs."""
    val_bpb_std: float | None
    """Sample standard deviation; None for a single run."""
    val_loss: float | None
    """Mean over the runs; None where one lacks it."""
    bytes_total: int | None
    """The largest of the runs."""
    step_ms: float | None
    """Median of the runs' medians."""
    difference: Difference | None = None
    """None for the baseline."""


@dataclass(frozen=True)
class Comparison:
    """Groups in the order given, and what they are compared with."""

    reference: str
    """Label of the baseline group, or the published val_bpb."""
    method: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...]
    """What a reader must know to judge the figures."""


def group_records(records: Iterable[RunRecord]) -> list[Group]:
    """Group runs that differ in nothing but seed, paths and machine, in the order of their first runs.

    Runs of unknown settings belong together if their names do, except for the seed ("x-seed1", "x-seed2").
    """
    grouped: dict[str, list[RunRecord]] = {}
    for record in records:
        grouped.setdefault(repr(sorted(_compared(record).items())), []).append(record)
    compared = [_compared(group[0]) for group in grouped.values()]
    differing = [
        name
        for name in sorted({name for settings in compared for name in settings})
        if len({repr(settings[name]) for settings in compared if name in settings}) > 1
    ]
    stacks = [{record.preset for record in group} for group in grouped.values()]
    tells = len(set().union(*stacks)) > 1
    return [
        _group(
            {name: settings[name] for name in differing if name in settings},
            stack.pop() if tells and len(stack) == 1 else "",
            group,
        )
        for settings, stack, group in zip(compared, stacks, grouped.values(), strict=True)
    ]


def compare(records: Sequence[RunRecord], baseline: str = "", against: float | None = None) -> Comparison:
    """Compare each group of `records` with the baseline group, or with a published val_bpb.

    `baseline` is the name or folder of a run, settings ("model.q_rank=0") or a stack ("demo+a"); by
    default the group of the first record. Raises UserError if there are no records or none is the baseline.
    """
    groups = group_records(records)
    if not groups:
        raise UserError("name the runs to compare, or published figures with --values")
    if against is not None:
        if baseline:
            raise UserError("compare with a baseline group or with a published figure, not with both")
        groups = _with_differences(groups, float(against))
        return Comparison(f"{against:g}", "one-sample t-test, one-sided", tuple(groups), _notes(groups))
    base = _find(groups, baseline) if baseline else groups[0]
    others = [_relabelled(group, base) for group in groups if group is not base]
    compared = iter(_with_differences(others, base))
    groups = [group if group is base else next(compared) for group in groups]
    return Comparison(base.label, "Welch's t-test, two-sided", tuple(groups), _notes(groups))


def pareto_front(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Runs within their budget that no other beats in both val_bpb and bytes: fewest bytes first.

    Runs that do not tell their bytes have no place in it.
    """
    sized = [(r.bytes_total, r.val_bpb, r) for r in records if r.bytes_total is not None]
    fitting = [(size, bpb, r) for size, bpb, r in sized if not r.budget or size <= r.budget]
    front: list[RunRecord] = []
    for _, bpb, record in sorted(fitting, key=lambda point: point[:2]):
        if not front or bpb < front[-1].val_bpb:
            front.append(record)
    return front


def read_published(text: str, bytes_per_token: float | None = None) -> list[RunRecord]:
    """Records of published val_bpb, one a seed, from text such as "1.1548,1.1552,1.1575".

    `bytes_per_token`, of the tokenizer on the validation text, turns them into val_loss as well.
    Raises UserError if one of the figures is no number above 0.
    """
    if bytes_per_token is not None and not 0 < bytes_per_token < math.inf:
        raise UserError(f"bytes a token must be above 0, not {bytes_per_token}")
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < math.inf for value in values):
        raise UserError(f"'{text}' is no list of val_bpb; write them as 1.1548,1.1552,1.1575")
    name = ", ".join(f"{value:g}" for value in values)
    nats_per_bpb = bytes_per_token * math.log(2) if bytes_per_token else None
    return [RunRecord(name, value, val_loss=nats_per_bpb and value * nats_per_bpb) for value in values]


def to_json(comparison: Comparison) -> dict[str, Any]:
    """The comparison as plain JSON values; a run's settings are left to its own config.json."""
    values = dataclasses.asdict(comparison)
    for group in values["groups"]:
        for record in group["records"]:
            del record["settings"]
            record["folder"] = str(record["folder"]) if record["folder"] else None
    return values


def _compared(record: RunRecord) -> Settings:
    """The settings by which runs are told apart."""
    settings = {name: value for name, value in record.settings.items() if name not in NOT_COMPARED}
    if not settings:
        settings[RUN] = re.sub(r"[-_. ]*seed[-_=. ]*\d+", "", record.name, flags=re.IGNORECASE)
    settings |= {name: Path(settings[name]).name for name in PATHS & settings.keys()}
    if record.stride is not None:  # what was done counts, not what was set
        settings["eval.stride"] = record.stride
    return settings


def _group(settings: Settings, preset: str, records: list[RunRecord]) -> Group:
    scores = [r.val_bpb for r in records]
    losses = [r.val_loss for r in records if r.val_loss is not None]
    step_ms = [r.step_ms for r in records if r.step_ms is not None]
    return Group(
        label=_label(settings, preset) or records[0].name,
        settings=settings,
        preset=preset,
        records=tuple(records),
        val_bpb=statistics.fmean(scores),
        val_bpb_std=statistics.stdev(scores) if len(scores) > 1 else None,
        val_loss=statistics.fmean(losses) if len(losses) == len(records) else None,
        bytes_total=max((r.bytes_total for r in records if r.bytes_total is not None), default=None),
        step_ms=statistics.median(step_ms) if step_ms else None,
    )


def _label(settings: Settings, preset: str = "") -> str:
    words = ", ".join(f"{value}" if name == RUN else f"{name}={value}" for name, value in settings.items())
    return f"{preset} ({words})" if preset and words else preset or words


def _relabelled(group: Group, base: Group) -> Group:
    """The group, labelled by nothing but what it changes in the baseline."""
    changes = {
        name: value
        for name, value in group.settings.items()
        if name not in base.settings or base.settings[name] != value
    }
    return dataclasses.replace(group, label=_label(changes, group.preset) or group.label)


def _find(groups: list[Group], wanted: str) -> Group:
    words = {word.strip() for word in wanted.split(",")}
    for group in groups:
        if any(wanted == r.name or Path(wanted) == r.folder for r in group.records):
            return group
        told = {_label({name: value}) for name, value in group.settings.items()} | {group.preset}
        if words <= told - {""}:
            return group
    raise UserError(f"no run or group is '{wanted}'; there are: {'; '.join(group.label for group in groups)}")


def _with_differences(groups: list[Group], reference: Group | float) -> list[Group]:
    """The groups with their differences from the reference, p-values corrected for testing all of them."""
    differences = [_difference(group, reference) for group in groups]
    p_holm = holm([d.test.p if d.test else None for d in differences])
    p_record = holm([d.p_record for d in differences])
    paired = _paired(groups, reference)
    p_paired = holm([test.p if test else None for test in paired])
    return [
        dataclasses.replace(
            group,
            difference=dataclasses.replace(
                difference,
                p_holm=p,
                paired=test,
                p_paired=p_pairs,
                p_record=record,
                is_record=None if record is None else record < RECORD_LEVEL,
            ),
        )
        for group, difference, p, test, p_pairs, record in zip(
            groups, differences, p_holm, paired, p_paired, p_record, strict=True
        )
    ]


def _difference(group: Group, reference: Group | float) -> Difference:
    """One group's difference, with p-values as if it were the only one."""
    scores = [r.val_bpb for r in group.records]
    other: Reference = [r.val_bpb for r in reference.records] if isinstance(reference, Group) else reference
    losses = _losses(group, reference)
    no_test = _why_no_test(group, reference)
    return Difference(
        bpb=_mean(scores) - _mean(other),
        nats=_mean(losses[0]) - _mean(losses[1]) if losses else None,
        test=None if no_test else t_test(scores, other),
        no_test=no_test,
        p_holm=None,
        paired=None,
        p_paired=None,
        p_record=p_better_by(RECORD_NATS, *losses) if losses and not no_test else None,
        is_record=None,
    )


def _paired(groups: Sequence[Group], reference: Group | float) -> list[TTest | None]:
    """Tests of the differences seed by seed, of the groups that have the seeds of the reference.

    Groups that were trained apart share their chance; otherwise each is tested alone.
    """
    if not isinstance(reference, Group):
        return [None] * len(groups)
    by_seed = [{r.seed: r.val_bpb for r in group.records} for group in (reference, *groups)]
    seeds = by_seed[0].keys() - {None}
    whole = [
        scores.keys() == seeds and len(scores) == len(group.records)
        for scores, group in zip(by_seed, (reference, *groups), strict=True)
    ]
    if not whole[0]:
        return [None] * len(groups)
    first, *rows = [
        [scores[seed] for seed in seeds] for scores, pairs in zip(by_seed, whole, strict=True) if pairs
    ]
    apart = _trained_apart([g for g, pairs in zip((reference, *groups), whole, strict=True) if pairs])
    families = [rows] if apart else [[row] for row in rows]
    tests = iter([test for family in families for test in paired_tests([first, *family]) or (None,)])
    return [next(tests, None) if pairs else None for pairs in whole[1:]]


def _trained_apart(groups: Sequence[Group]) -> bool:
    """Whether no two groups are one training, packed or scored in two ways, or by a setting without effect.

    Such copies differ by next to no chance, so that they would make all others look sure.
    """
    trainings = {
        repr([item for item in group.settings.items() if not item[0].startswith(("export.", "eval."))])
        for group in groups
    }
    scores = {tuple(record.val_bpb for record in group.records) for group in groups}
    return len(trainings) == len(scores) == len(groups)


def _losses(group: Group, reference: Group | float) -> tuple[list[float], Reference] | None:
    """val_loss of group and reference, in nats of the same tokens; None where they have none in common."""
    if group.val_loss is None:
        return None
    losses = [r.val_loss for r in group.records if r.val_loss is not None]
    nats_per_bpb = group.val_loss / group.val_bpb  # ln 2 x bytes a token
    if not isinstance(reference, Group):
        return losses, reference * nats_per_bpb
    if reference.val_loss is None:
        return None
    # To 0.1 %, for figures published with four digits and windows that leave out the text's tail.
    if not math.isclose(nats_per_bpb, reference.val_loss / reference.val_bpb, rel_tol=1e-3):
        return None
    return losses, [r.val_loss for r in reference.records if r.val_loss is not None]


def _why_no_test(group: Group, reference: Group | float) -> str:
    why = why_no_test([r.val_bpb for r in group.records])
    if not why and isinstance(reference, Group):
        why = why_no_test([r.val_bpb for r in reference.records])
        return f"the baseline has {why}" if why else ""
    return why


def _mean(values: Reference) -> float:
    return values if isinstance(values, float) else statistics.fmean(values)


def _notes(groups: Sequence[Group]) -> tuple[str, ...]:
    """What a reader must know to judge the figures, a line each."""
    notes = []
    for group in groups:
        seeds = [r.seed for r in group.records if r.seed is not None]
        if len(set(seeds)) < len(seeds):
            notes.append(f"{group.label}: a seed counts more than once, so the runs are not independent")
        for budget in {r.budget for r in group.records if r.budget and (r.bytes_total or 0) > r.budget}:
            notes.append(f"{group.label}: over the budget of {budget:,} bytes")
        notes += [record.stale for record in group.records if record.stale]
        if group.difference and group.difference.no_test:
            notes.append(f"no test for {group.label}: {group.difference.no_test}")
        if group.difference and group.difference.nats is None:
            notes.append(f"no nats for {group.label}: a val_loss is unknown, or of another tokenizer")
    if len({r.val_bytes for group in groups for r in group.records if r.val_bytes is not None}) > 1:
        notes.append("the runs were not all scored on the same text")
    return tuple(notes)
