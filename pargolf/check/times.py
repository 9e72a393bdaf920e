"""The rules on time: 600 s of training and of evaluation, and the steps and milliseconds stated."""

from pargolf.challenge import TIME_LIMIT
from pargolf.check.evidence import SUBMISSION_JSON, Evidence, Finding, RunLog, finding, judge

# The challenge's script looks at the clock once a step, a step late: it stops up to 1.6 steps over.
STEPS_OVER = 2
SECONDS_OVER = 1.0  # above this it is no accident of the clock
MS_SURE = 0.05  # of the milliseconds a step: they may leave out the first steps, but not so many
MS_NEAR = 0.005


def training_time(evidence: Evidence) -> Finding:
    """Training, calibration included, takes at most 600 s, plus the steps in progress."""
    rule = "training time"
    times = {
        run.name: float(run.log.train_seconds) for run in evidence.logs if run.log.train_seconds is not None
    }
    if not times:
        return finding(rule, "not checked", "no log states train_time")
    faults: list[str] = []
    doubts: list[str] = []
    for run in evidence.logs:
        if run.log.train_seconds is not None:
            _judge_training(run, float(run.log.train_seconds), faults, doubts)
    good = f"{max(times.values()):.1f} s at most"
    if evidence.unlimited:
        return judge(rule, [], [f"{line} in all tracks but the unlimited" for line in faults], good)
    return judge(rule, faults, doubts, good)


def _judge_training(run: RunLog, seconds: float, faults: list[str], doubts: list[str]) -> None:
    mean = seconds / max(run.log.last_step or 0, 1)
    text = f"{run.name}: {seconds:,.1f} s, the limit is {TIME_LIMIT}"
    over, allowed = seconds - TIME_LIMIT, STEPS_OVER * mean
    if not run.log.train_exact:
        if over > 3:  # minutes rounded to tenths
            faults.append(text)
    elif over > max(allowed, SECONDS_OVER):
        faults.append(text)
    elif over > allowed:
        doubts.append(f"{text}: {over:.2f} s or {over / mean:.1f} mean steps over")
    calibration = float(run.log.calibration_seconds or 0)
    if over <= allowed < over + calibration:
        doubts.append(
            f"{run.name}: {seconds:,.1f} s of steps and {calibration:.1f} s of calibration, which belongs to"
            f" training, are over {TIME_LIMIT}; accepted records were, too"
        )


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
    others = max(
        float(sum(x.seconds or 0 for x in run.log.scores if x is not run.log.final)) for run in evidence.logs
    )
    return judge(rule, faults, doubts, f"{max(times.values()):.1f} s at most; other scores {others:.1f} s")


def stated_steps(evidence: Evidence) -> Finding:
    """The steps and milliseconds a step in submission.json are the logs'."""
    rule = "steps stated"
    if evidence.stated is None or not evidence.logs:
        return finding(rule, "not checked", f"needs {SUBMISSION_JSON} and a training log")
    faults: list[str] = []
    doubts: list[str] = []
    rows = [(f"seed {seed}: ", f, evidence.logs_of(seed)) for seed, f in evidence.stated.seed_results.items()]
    for whose, figures, runs in [("", evidence.stated.values, evidence.logs), *rows]:
        _judge_steps(whose, figures, runs, faults)
        _judge_ms(whose, figures, runs, faults, doubts)
    stated = any("steps" in f or "ms_per_step" in f for _, f, _ in [("", evidence.stated.values, []), *rows])
    return judge(rule, faults, doubts, "equal to the logs" if stated else "none stated")


def _judge_steps(whose: str, figures: dict[str, object], runs: list[RunLog], faults: list[str]) -> None:
    steps, logged = figures.get("steps"), [run.log.last_step for run in runs if run.log.last_step]
    if not isinstance(steps, int) or not logged:
        return
    # A run without a cap is planned for as many as its lines say; a mean is rounded.
    if steps not in logged and (whose or abs(steps - sum(logged) / len(logged)) >= 1):
        faults.append(f"{whose}{steps:,} steps are stated, the log has {logged[0]:,}")


def _judge_ms(
    whose: str, figures: dict[str, object], runs: list[RunLog], faults: list[str], doubts: list[str]
) -> None:
    stated = figures.get("ms_per_step")
    logged = [
        1000 * float(run.log.train_seconds) / run.log.last_step
        for run in runs
        if run.log.train_seconds and run.log.train_exact and run.log.last_step
    ]
    if not isinstance(stated, int | float) or not logged:
        return
    nearest = min([*logged, sum(logged) / len(logged)], key=lambda ms: abs(ms - stated))
    text = f"{whose}{stated:g} ms a step are stated, the log gives {nearest:.2f}"
    # Seconds of training are often rounded to tenths before they are divided, which tells in a short run.
    rounding = 1000 * 0.05 / min(run.log.last_step for run in runs if run.log.last_step)
    if abs(stated - nearest) > MS_SURE * nearest + rounding:
        faults.append(text)
    elif abs(stated - nearest) > rounding + max(MS_NEAR * nearest, 0.5 if stated == int(stated) else 0.0501):
        doubts.append(text)
