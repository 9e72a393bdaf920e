"""The rules on figures: everything that is stated is worked out again from the logs and the files."""

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext

from pargolf.challenge import BUDGET, RECORD_LEVEL, RECORD_NATS, TIME_LIMIT
from pargolf.check.evidence import CODE, SUBMISSION_JSON, Evidence, Finding, RunLog, finding, judge
from pargolf.run.logs import LoggedScore
from pargolf.study.statistics import t_test

FEWEST_DECIMALS = 4  # a score that is stated with fewer is compared as if it had these


def seeds(evidence: Evidence) -> Finding:
    """Each stated seed has its log, and each log its own seed."""
    faults = [
        f"{run.name} is the log of seed {run.log.seed}"
        for run in evidence.logs
        if run.log.seed is not None and run.named_seed not in (None, run.log.seed)
    ]
    stated = evidence.stated.seeds if evidence.stated else set()
    faults += [f"there is no log of seed {seed}" for seed in sorted(stated) if not evidence.logs_of(seed)]
    found = [run.seed for run in evidence.logs if run.seed is not None]
    doubts = [
        f"seed {seed} has {found.count(seed)} logs" for seed in sorted(set(found)) if found.count(seed) > 1
    ]
    if stated:
        doubts += [f"{run.name} is of a seed not stated" for run in evidence.logs if run.seed not in stated]
    if not evidence.logs:
        return finding("seeds", "not checked", "there is no training log")
    return judge("seeds", faults, doubts, ", ".join(map(str, found)) or "not stated")


def size(evidence: Evidence) -> Finding:
    """Code and compressed model take at most 16,000,000 bytes."""
    if evidence.code_bytes is None:
        return finding("bytes", "not checked", f"there is no {CODE}")
    if evidence.models:
        name, model_bytes = max(evidence.models.items(), key=lambda item: item[1])
        total = evidence.code_bytes + model_bytes
        parts = f"code {evidence.code_bytes:,} + {name} {model_bytes:,} = {total:,} bytes"
        return judge("bytes", _over(total, parts), [], parts)
    logged = [run.log.model_bytes for run in evidence.logs if run.log.model_bytes is not None]
    totals = [run.log.total_bytes for run in evidence.logs if run.log.total_bytes is not None]
    if not logged and not totals:
        return finding("bytes", "not checked", "there is no model file, and no log states its size")
    total = max([evidence.code_bytes + n for n in logged] + totals)
    parts = f"{total:,} bytes by the logs; there is no model file to measure"
    return finding("bytes", "fault" if _over(total, parts) else "not checked", parts)


def _over(total: int, parts: str) -> list[str]:
    over = total - BUDGET
    return [f"{parts}, {over:,} over {BUDGET:,}"] if over > 0 else []


def stated_size(evidence: Evidence) -> Finding:
    """The bytes in submission.json are those of the files and the logs."""
    if evidence.stated is None or evidence.code_bytes is None:
        return finding("bytes stated", "not checked", f"needs {SUBMISSION_JSON} and {CODE}")
    faults: list[str] = []
    doubts: list[str] = []
    code, total = (evidence.stated.values.get(name) for name in ("bytes_code", "bytes_total"))
    if code is not None and code != evidence.code_bytes:
        faults.append(f"bytes_code is {code:,}, {CODE} has {evidence.code_bytes:,}")
    measured = {evidence.code_bytes + model for model in evidence.models.values()}
    logged = {run.log.total_bytes for run in evidence.logs if run.log.total_bytes is not None}
    if total is not None and not measured | logged:
        doubts.append("bytes_total cannot be compared: no model file, and no log states its size")
    elif total is not None and total not in measured | logged:
        known = ", ".join(f"{n:,}" for n in sorted(measured or logged))
        faults.append(f"bytes_total is {total:,}, worked out: {known}")
    elif total is not None and measured and total not in measured:
        doubts.append(f"bytes_total is {total:,} as a log states it; the model file gives another")
    for seed, figures in evidence.stated.seed_results.items():
        sizes = {n for run in evidence.logs_of(seed) for n in (run.log.total_bytes, run.log.model_bytes) if n}
        if "bytes_total" in figures and sizes and figures["bytes_total"] not in sizes:
            faults.append(f"seed {seed}: {figures['bytes_total']:,} bytes, its log states {max(sizes):,}")
    for run in evidence.logs:
        log = run.log
        parts = (log.code_bytes or 0) + (log.model_bytes or 0)
        if log.code_bytes and log.model_bytes and log.total_bytes not in (None, parts):
            doubts.append(f"{run.name}: code and model do not add up to the total it states")
        if log.code_bytes and log.code_bytes != evidence.code_bytes:
            doubts.append(
                f"{run.name} ran {log.code_bytes:,} bytes of code, {CODE} has {evidence.code_bytes:,}"
            )
    good = "equal to files and logs" if total is not None or code is not None else "none stated"
    return judge("bytes stated", faults, doubts, good)


def agrees(stated: Decimal, found: Decimal) -> bool:
    """Whether two figures are the same to the decimals of the shorter, however its last was rounded."""
    decimals = min(max(_decimals(stated), FEWEST_DECIMALS), max(_decimals(found), FEWEST_DECIMALS))
    return abs(stated - found) < Decimal(1).scaleb(-decimals)


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
            stated = evidence.stated.values[name]
            means = _means(evidence, scored, name)
            if not any(agrees(stated, mean) for mean in means):
                _compare(name, stated, name, scored, faults, doubts)
                if len(scored) > 1 and not faults:
                    doubts.append(f"{name} is that of one log; the mean is {means[0]}")
    return judge(rule, faults, doubts, "equal to the logs")


def fits(score: LoggedScore) -> bool:
    """Whether val_bpb follows from val_loss, where a log states the tokens and bytes it scored."""
    if not score.tokens or not score.bytes:
        return True
    worked_out = float(score.val_loss) / math.log(2) * score.tokens / score.bytes
    # Both are rounded.
    return abs(worked_out - float(score.val_bpb)) < 2 * 10.0 ** -_decimals(score.val_bpb)


def _means(evidence: Evidence, scored: list[RunLog], name: str) -> list[Decimal]:
    """The mean over the seeds that are stated, and over all logs; with as many decimals as they have."""
    assert evidence.stated is not None
    given = [figures[name] for figures in evidence.stated.seed_results.values() if name in figures]
    logged = [getattr(run.log.final, name) for run in scored]
    with localcontext(prec=100):
        return [
            round(sum(values, Decimal(0)) / len(values), max(map(_decimals, values)))
            for values in (given, logged)
            if values
        ]


def _compare(
    what: str, stated: Decimal, name: str, runs: list[RunLog], faults: list[str], doubts: list[str]
) -> None:
    """Look for a stated figure among the scores that logs end with, then among all their scores."""
    finals = [getattr(run.log.final, name) for run in runs if run.log.final is not None]
    if any(agrees(stated, value) for value in finals):
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
    nats = against.val_bpb * sum(losses) / sum(float(score.val_bpb) for score in scores)
    test = t_test(losses, nats - RECORD_NATS)
    text = (
        f"{len(losses)} seeds, mean val_loss {sum(losses) / len(losses):.4f} against {nats:.4f}"
        f" - {RECORD_NATS} ({against.name}): t = {test.t:.2f}, df = {test.df:g}, p = {test.p:.2g}"
    )
    return finding(rule, "ok" if test.p < RECORD_LEVEL else "fault", text)


def training_time(evidence: Evidence) -> Finding:
    """Training takes at most 600 s, plus the step in progress."""
    rule = "training time"
    times = {
        run.name: float(run.log.train_seconds) for run in evidence.logs if run.log.train_seconds is not None
    }
    if not times:
        return finding(rule, "not checked", "no log states train_time")
    over: list[str] = []
    for run in evidence.logs:
        seconds = times.get(run.name, 0.0)
        steps = run.log.steps[-1].step if run.log.steps else 0
        if seconds > TIME_LIMIT + seconds / max(steps, 1):
            over.append(f"{run.name}: {seconds:,.1f} s, the limit is {TIME_LIMIT}")
    good = f"{max(times.values()):.1f} s at most"
    if evidence.stated is not None and "non" in evidence.stated.track.lower():
        return judge(rule, [], [f"{line} in all tracks but the unlimited" for line in over], good)
    return judge(rule, over, [], good)


def evaluation_time(evidence: Evidence) -> Finding:
    """The evaluation that gives the score takes at most 600 s."""
    rule = "evaluation time"
    times = {
        run.name: float(run.log.eval_seconds) for run in evidence.logs if run.log.eval_seconds is not None
    }
    if not times:
        return finding(rule, "not checked", "no log states eval_time")
    faults = [f"{name}: {t:,.1f} s, the limit is {TIME_LIMIT}" for name, t in times.items() if t > TIME_LIMIT]
    sums = {
        run.name: float(sum(x.seconds or 0 for x in run.log.scores if x.of_artifact)) for run in evidence.logs
    }
    doubts = [f"{name}: all evaluations take {t:,.1f} s" for name, t in sums.items() if t > TIME_LIMIT]
    return judge(rule, faults, doubts, f"{max(times.values()):.1f} s at most")
