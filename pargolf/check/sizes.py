"""The rules on bytes: the budget, and whether what is stated is what files and logs hold.

The README's letter counts train_gpt.py as it lies in the folder. Accepted records from April 2026 on
count it compressed, as their logs state: both sums are shown, and the letter is then a warning.
"""

from pargolf.challenge import BUDGET
from pargolf.check.evidence import CODE, SUBMISSION_JSON, Evidence, Finding, RunLog, finding, judge


def size(evidence: Evidence) -> Finding:
    """Code and compressed model take at most 16,000,000 bytes."""
    if evidence.code_bytes is None:
        return finding("bytes", "not checked", f"there is no {CODE}")
    faults = [
        _over(run.log.total_bytes, f"{run.name} states {run.log.total_bytes:,} bytes")
        for run in evidence.logs
        if run.log.total_bytes is not None and run.log.total_bytes > BUDGET
    ]
    sizes = dict(evidence.models) or {
        f"the model of {run.name}": run.log.model_bytes
        for run in evidence.logs
        if run.log.model_bytes is not None
    }
    if not sizes:
        return judge("bytes", faults, [], "") if faults else _unknown(evidence)
    seeds = [str(run.seed) for run in evidence.logs if run.seed is not None]
    parts_of_one = [name for name in evidence.models if not any(seed in name for seed in ("seed", *seeds))]
    doubts = []
    if len(parts_of_one) > 1 and sum(sizes[name] for name in parts_of_one) > BUDGET:
        listed = ", ".join(sorted(parts_of_one)[:3])
        doubts = [f"{listed} are more than {BUDGET:,} bytes together: are they the parts of one model?"]
    name, model_bytes = max(sizes.items(), key=lambda item: item[1])
    total = evidence.code_bytes + model_bytes
    parts = f"code {evidence.code_bytes:,} + {name} {model_bytes:,} = {total:,} bytes"
    if not evidence.models:
        parts += " by the logs; there is no model file to measure"
    if total > BUDGET and (counted := _compressed_total(evidence, model_bytes)):
        doubts.append(
            f"{_over(total, parts)}; the logs count the code compressed, as accepted records do: {counted:,}"
        )
        return judge("bytes", faults, doubts, "")
    if total > BUDGET:
        faults.append(_over(total, parts))
    if not faults and not evidence.models:
        return finding("bytes", "not checked", parts)
    return judge("bytes", faults, doubts, parts)


def _unknown(evidence: Evidence) -> Finding:
    """There is no model file and no log with its size; a total may be stated."""
    totals = [run.log.total_bytes for run in evidence.logs if run.log.total_bytes is not None]
    if not totals:
        return finding("bytes", "not checked", "there is no model file, and no log states its size")
    text = f"{max(totals):,} bytes by the logs; there is no model file to measure"
    return finding("bytes", "not checked", text)


def _over(total: int, parts: str) -> str:
    return f"{parts}, {total - BUDGET:,} over {BUDGET:,}"


def _compressed_total(evidence: Evidence, model_bytes: int) -> int | None:
    """The largest total of the logs within the budget, if all count this model and a smaller code."""
    logs = [run.log for run in evidence.logs if run.log.total_bytes is not None]
    totals = [log.total_bytes or 0 for log in logs]
    smaller = all(log.code_bytes and log.code_bytes < (evidence.code_bytes or 0) for log in logs)
    known = any(log.model_bytes == model_bytes for log in logs)
    if logs and smaller and known and all(map(_adds_up, evidence.logs)):
        return max(totals) if max(totals) <= BUDGET else None
    return None


def _adds_up(run: RunLog) -> bool:
    """Whether a log's total is its model and one of the sizes of code that it states."""
    log = run.log
    if log.total_bytes is None or log.model_bytes is None or not log.code_sizes:
        return True
    return log.total_bytes - log.model_bytes in log.code_sizes


def stated_size(evidence: Evidence) -> Finding:
    """The bytes in submission.json are those of the files and the logs."""
    if evidence.stated is None or evidence.code_bytes is None:
        return finding("bytes stated", "not checked", f"needs {SUBMISSION_JSON} and {CODE}")
    faults: list[str] = []
    doubts: list[str] = []
    _judge_code(evidence, faults, doubts)
    _judge_total(evidence, faults, doubts)
    for seed, figures in evidence.stated.seed_results.items():
        sizes = {n for run in evidence.logs_of(seed) for n in (run.log.total_bytes, run.log.model_bytes) if n}
        if "bytes_total" in figures and sizes and figures["bytes_total"] not in sizes:
            faults.append(f"seed {seed}: {figures['bytes_total']:,} bytes, its log states {max(sizes):,}")
    for run in evidence.logs:
        if not _adds_up(run):
            code, model = run.log.code_bytes or 0, run.log.model_bytes or 0
            faults.append(
                f"{run.name} states {run.log.total_bytes:,} bytes in all,"
                f" code {code:,} + model {model:,} are {code + model:,}"
            )
        if run.log.code_sizes and evidence.code_bytes not in run.log.code_sizes:
            stated = max(run.log.code_sizes)
            doubts.append(f"{run.name} ran {stated:,} bytes of code, {CODE} has {evidence.code_bytes:,}")
    stated_any = {"bytes_code", "bytes_total"} & evidence.stated.values.keys()
    return judge("bytes stated", faults, doubts, "equal to files and logs" if stated_any else "none stated")


def _judge_code(evidence: Evidence, faults: list[str], doubts: list[str]) -> None:
    """bytes_code is that of the file, or of the code as the logs count it."""
    assert evidence.stated is not None
    code = evidence.stated.values.get("bytes_code")
    if code in (None, evidence.code_bytes):
        return
    text = f"bytes_code is {code:,}, {CODE} has {evidence.code_bytes:,}"
    logged = [size for run in evidence.logs for size in run.log.code_sizes]
    compressed = code in logged and code < (evidence.code_bytes or 0)
    (doubts if compressed else faults).append(f"{text}; the logs count it so" if compressed else text)


def _judge_total(evidence: Evidence, faults: list[str], doubts: list[str]) -> None:
    """bytes_total is measured, or a log's, or the mean of the seeds'."""
    assert evidence.stated is not None
    total = evidence.stated.values.get("bytes_total")
    if total is None or evidence.code_bytes is None:
        return
    measured = {evidence.code_bytes + model for model in evidence.models.values()}
    logged = [run.log.total_bytes for run in evidence.logs if run.log.total_bytes is not None]
    by_seed = [f["bytes_total"] for f in evidence.stated.seed_results.values() if "bytes_total" in f]
    of_stated = [run.log.total_bytes for run in evidence.stated_logs if run.log.total_bytes is not None]
    is_mean = any(v and abs(total - sum(v) / len(v)) < 1 for v in (logged, of_stated, by_seed))
    known = measured.union(logged)
    if not known:
        doubts.append("bytes_total cannot be compared: no model file, and no log states its size")
    elif total not in known and not is_mean:
        listed = ", ".join(f"{n:,}" for n in sorted(measured or known))
        faults.append(f"bytes_total is {total:,}, worked out: {listed}")
    elif measured and total not in measured and not is_mean:
        doubts.append(f"bytes_total is {total:,} as a log states it; the model file gives another")
