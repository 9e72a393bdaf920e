"""The rule on seeds: each has its log, all are of one configuration, and none was picked."""

import re
from collections.abc import Iterator

from pargolf.check.evidence import Evidence, Finding, finding, judge

USUAL_SEEDS = 3
# Settings that differ between the seeds of one configuration: names, places and the seed.
OWN_SETTING = re.compile(r"seed|run_id|(^|_)(dir|file|files|path|name)$|logfile|rank")
PICKED = re.compile(
    r"""\b(best|lowest)\s+(seed\s+)?(out\s+)?of\s+((the|our|my)\s+)?(\w+\s+){0,2}(seeds|runs|trials)\b
    |\b(kept|keep|picked|chose|selected|submit(ted)?|report(ed)?|cherry[- ]?pick(ed)?)\s+(only\s+)?
     ((the|our)\s+)?(single\s+)?(best|luckiest|lowest)[- ]?(scoring\s+)?(seed|run)\b
    |\b(seeds|runs|trials)\b[^.;]{0,40}
     \b(kept|keep|picked|chose|took|selected|submitted|reported)\s+(only\s+)?the\s+best\b
    |\bseed\s+(search|brute[- ]?force|mining|hunting)\b""",
    re.IGNORECASE | re.VERBOSE,
)
DENIED = re.compile(
    r"\b(no|not|never|without|nor|rather than|instead of|isn't|wasn't)\b[^.;]{0,40}$", re.IGNORECASE
)


def seeds(evidence: Evidence) -> Finding:
    """Each stated seed has its log, and each log its own seed and the others' settings."""
    if not evidence.logs:
        return finding("seeds", "not checked", "there is no training log")
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
    if len(evidence.logs) < USUAL_SEEDS and not evidence.unlimited:
        doubts.append(f"{len(evidence.logs)} of the usual {USUAL_SEEDS} seeds")
    doubts += [*_other_settings(evidence), *_picked(evidence)]
    return judge("seeds", faults, doubts, ", ".join(map(str, found)) or "not stated")


def _other_settings(evidence: Evidence) -> Iterator[str]:
    """Logs whose settings are not those of the first: then their mean is of no one configuration."""
    first = evidence.logs[0]
    for run in evidence.logs[1:]:
        shared = first.log.settings.keys() & run.log.settings.keys()
        differing = [
            f"{name} is {run.log.settings[name]}, {first.log.settings[name]} in {first.name}"
            for name in sorted(shared)
            if first.log.settings[name] != run.log.settings[name] and not OWN_SETTING.search(name)
        ]
        if differing:
            yield f"{run.name} is of another configuration: {differing[0]}"


def _picked(evidence: Evidence) -> Iterator[str]:
    """What README.md and submission.json say of the best of several seeds having been kept."""
    for name, text in evidence.texts.items():
        for found in PICKED.finditer(text):
            if not DENIED.search(text[max(0, found.start() - 60) : found.start()]):
                yield f"{name} says '{found[0]}': a seed that was picked says little"
                break
