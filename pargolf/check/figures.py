"""The rules on scores: each that is stated is worked out again from the logs."""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext

from pargolf.challenge import RECORD_LEVEL, RECORD_NATS
from pargolf.check.evidence import SUBMISSION_JSON, Evidence, Finding, RunLog, finding, judge
from pargolf.run.logs import LoggedScore
from pargolf.study.statistics import t_test

FEWEST_DECIMALS = 4  # a score that is stated with fewer is compared as if it had these


def agrees(stated: Decimal, found: Decimal) -> bool:
    """Whether the longer of two figures, rounded to the decimals of the shorter, is the shorter."""
    return abs(stated - found) <= _unit(stated, found) / 2


def cut(stated: Decimal, found: Decimal) -> bool:
    """Whether the stated figure is the found one, cut off where it should have been rounded."""
    return 0 <= found - stated < _unit(stated, found) and _decimals(stated) < _decimals(found)


def _unit(stated: Decimal, found: Decimal) -> Decimal:
    """One of the last decimal that both figures have."""
    decimals = min(max(_decimals(stated), FEWEST_DECIMALS), max(_decimals(found), FEWEST_DECIMALS))
    return Decimal(1).scaleb(-decimals)


def _decimals(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0


def stated_scores(evidence: Evidence) -> Finding:
    """val_loss and val_bpb in submission.json are those that the logs end with."""
    rule = "scores stated"
    if evidence.stated is None or not evidence.logs:
        return finding(rule, "not checked", f"needs {SUBMISSION_JSON} and a training log")
    scored = [run for run in evidence.logs if run.log.final is not None]
    faults: list[str] = []
    doubts = [f"{run.name} holds no score of the artifact" for run in evidence.logs if run.log.final is None]
    if not scored:
        return finding(rule, "fault", "; ".join(doubts))
    for run in scored:
        if run.log.final and not fits(run.log.final):
            faults.append(f"{run.name}: val_bpb is not val_loss / ln 2 x tokens / bytes")
    for seed, figures in evidence.stated.seed_results.items():
        for name in ("val_loss", "val_bpb"):
            if name in figures and evidence.logs_of(seed):
                _compare(f"seed {seed}: {name}", figures[name], name, evidence.logs_of(seed), faults, doubts)
    for name in ("val_loss", "val_bpb"):
        if name in evidence.stated.values:
            _judge_headline(evidence, scored, name, faults, doubts)
    return judge(rule, faults, doubts, "equal to the logs")


def fits(score: LoggedScore) -> bool:
    """Whether val_bpb follows from val_loss, where a log states the tokens and bytes it scored."""
    if not score.tokens or not score.bytes:
        return True
    worked_out = float(score.val_loss) / math.log(2) * score.tokens / score.bytes
    # Both are rounded.
    return abs(worked_out - float(score.val_bpb)) < 2 * 10.0 ** -_decimals(score.val_bpb)


def _judge_headline(
    evidence: Evidence, scored: list[RunLog], name: str, faults: list[str], doubts: list[str]
) -> None:
    """The score of the submission is the mean of its seeds."""
    assert evidence.stated is not None
    stated, means = evidence.stated.values[name], _means(evidence, scored, name)
    if any(abs(stated - mean) <= _unit(stated, stated) / 2 + rounding for mean, rounding in means):
        return
    if any(cut(stated, mean) for mean, _ in means):
        doubts.append(f"{name} {stated} is cut off the mean {means[0][0]:.8f}, not rounded")
        return
    before = len(faults)
    _compare(name, stated, name, scored, faults, doubts)
    if len(scored) > 1 and len(faults) == before:
        doubts.append(f"{name} is that of one log; the mean is {means[0][0]:.8f}")


def _means(evidence: Evidence, scored: list[RunLog], name: str) -> list[tuple[Decimal, Decimal]]:
    """The mean of the stated seeds' figures, of their logs, and of all logs; and by how much each
    may be off, since the figures are rounded."""
    assert evidence.stated is not None
    given = [figures[name] for figures in evidence.stated.seed_results.values() if name in figures]
    of_stated = [getattr(run.log.final, name) for run in evidence.stated_logs if run.log.final]
    logged = [getattr(run.log.final, name) for run in scored]
    with localcontext(prec=100):
        return [
            (sum(values, Decimal(0)) / len(values), Decimal(1).scaleb(-min(map(_decimals, values))) / 2)
            for values in (given, of_stated, logged)
            if values
        ]


def _compare(
    what: str, stated: Decimal, name: str, runs: list[RunLog], faults: list[str], doubts: list[str]
) -> None:
    """Look for a stated figure among the scores that logs end with, then among all their scores."""
    finals = [getattr(run.log.final, name) for run in runs if run.log.final is not None]
    if any(agrees(stated, value) for value in finals):
        return
    if close := [value for value in finals if cut(stated, value)]:
        doubts.append(f"{what} {stated} is cut off {close[0]}, not rounded")
        return
    for run in runs:
        for score in run.log.scores:
            if agrees(stated, getattr(score, name)):
                doubts.append(f"{what} is {run.name}'s '{score.label}', not the score it ends with")
                return
    listed = ", ".join(map(str, finals[:4])) or "none"
    faults.append(f"{what} is {stated}, the logs end with {listed}")


@dataclass(frozen=True)
class RecordToBeat:
    """The record to beat."""

    name: str
    val_bpb: float


def record(evidence: Evidence, against: RecordToBeat | None) -> Finding:
    """The record is beaten by 0.005 nats at p < 0.01: a one-sided t-test of one score a seed.

    Records are known by val_bpb, and nats a token depend on the tokenizer: the record's val_bpb is
    turned into nats by this submission's own ratio of val_loss to val_bpb.
    """
    rule = "record"
    if against is None:
        return finding(rule, "not checked", "name the record to beat with --against")
    finals = {
        run.name if run.seed is None else run.seed: run.log.final
        for run in reversed(evidence.logs)  # of two logs of one seed the first counts
    }
    scores = [score for score in finals.values() if score is not None]
    if len(scores) < 2:
        return finding(rule, "fault", f"{len(scores)} scored seeds show nothing; 3 are usual")
    losses = [float(score.val_loss) for score in scores]
    if len(set(losses)) == 1:
        return finding(rule, "fault", "all seeds have the same val_loss; nothing can be said of chance")
    if any(score.val_bpb <= 0 for score in scores):
        return finding(rule, "fault", "a log has a val_bpb of 0 or less, which is no score")
    nats = against.val_bpb * sum(losses) / sum(float(score.val_bpb) for score in scores)
    test = t_test(losses, nats - RECORD_NATS)
    text = (
        f"{len(losses)} seeds, mean val_loss {sum(losses) / len(losses):.4f} against {nats:.4f}"
        f" - {RECORD_NATS} ({against.name}): t = {test.t:.2f}, df = {test.df:g}, p = {test.p:.2g}"
    )
    return finding(rule, "ok" if test.p < RECORD_LEVEL else "fault", text)
