"""The rules on train_gpt.py: that it is all the code, and what it may not do."""

import ast
import re
from pathlib import PurePosixPath

from pargolf.check.evidence import CODE, Evidence, Finding, finding, judge
from pargolf.check.folder import Unreadable
from pargolf.check.mixing import find_mixing
from pargolf.check.network import network_use
from pargolf.check.prediction import doubts_of_prediction
from pargolf.check.sources import Newer, Source, aliases, calls, imports, qualified, third_party
from pargolf.check.submission_json import LARGEST_TEXT

REQUIREMENTS = "requirements.txt"
READERS = ("open", "read_text", "read_bytes")  # of a file's content
# Packages whose name is not that of the module they bring.
DISTRIBUTIONS = {"flash_attn_interface": "flash-attn-3", "PIL": "pillow", "sklearn": "scikit-learn",
                 "yaml": "pyyaml"}  # fmt: skip


def one_file(evidence: Evidence) -> Finding:
    """All code that counts lies in one train_gpt.py."""
    if CODE not in evidence.folder.sizes:
        return finding(CODE, "fault", f"{CODE} is missing")
    if evidence.source is None:
        return finding(CODE, "not checked", str(evidence.problems[CODE]))
    faults = [
        f"{where} imports {found.module}, which is not counted in the bytes"
        for where, tree in _layers(evidence.source)
        for found in imports(tree)
        if _is_local(found.module, evidence)
    ]
    faults += [f"{where} runs code from another file" for where in _runs_files(evidence.source)]
    others = [name for name in evidence.folder.sizes if PurePosixPath(name).name == CODE and name != CODE]
    doubts = [f"there is another {CODE}: {others[0]}"] if others else []
    return judge(CODE, faults, doubts, "all code in one file")


def _layers(source: Source) -> list[tuple[str, ast.Module]]:
    """The code as written and as unpacked, each with words for it."""
    return [("it" if n == 0 else "its unpacked code", tree) for n, tree in enumerate(source.trees)]


def _is_local(module: str, evidence: Evidence) -> bool:
    """Whether a module lies in the folder, also in a package without __init__.py."""
    top = module.split(".")[0]
    return not top or any(
        name == f"{top}.py" or (name.startswith(f"{top}/") and name.endswith(".py"))
        for name in evidence.folder.sizes
    )


def _runs_files(source: Source) -> list[str]:
    """Where a file's content is executed: `exec(open(...).read())` and runpy."""
    found = []
    for _, tree in _layers(source):
        names = aliases(tree)
        for call in calls(tree):
            function = qualified(call.func, names)
            reads = any(
                isinstance(inner.func, ast.Attribute | ast.Name)
                and getattr(inner.func, "attr", getattr(inner.func, "id", "")) in READERS
                for part in call.args
                for inner in calls(part)
            )
            if (function == "exec" and reads) or function.startswith("runpy.run_"):
                found.append(f"line {call.lineno}")
    return found


def syntax(evidence: Evidence) -> Finding:
    """train_gpt.py compiles, on this Python or a newer one."""
    if evidence.source is not None:
        layers = len(evidence.source.trees) - 1
        return finding("syntax", "ok", f"compiles, with {layers} packed layers" if layers else "compiles")
    problem = evidence.problems.get(CODE)
    broken = problem is not None and not isinstance(problem, Unreadable | Newer)
    return finding("syntax", "fault" if broken else "not checked", str(problem or f"no {CODE}"))


def requirements(evidence: Evidence) -> Finding:
    """requirements.txt names the packages beyond the challenge's own."""
    if evidence.source is None:
        return finding(REQUIREMENTS, "not checked", f"no {CODE} that can be read")
    needed = {
        name: opt for name, opt in third_party(evidence.source).items() if not _is_local(name, evidence)
    }
    if REQUIREMENTS not in evidence.folder.sizes:
        missing = [f"{name} is imported, and there is no {REQUIREMENTS}" for name in needed]
        certain = not all(needed.values())
        return judge(REQUIREMENTS, missing if certain else [], missing, "none needed")
    try:
        text = evidence.folder.read_text(REQUIREMENTS, LARGEST_TEXT)
    except Unreadable as problem:
        return finding(REQUIREMENTS, "fault", str(problem))
    named = {_normal(line) for line in re.findall(r"^\s*([A-Za-z0-9][\w.-]*)", text, re.MULTILINE)}
    # A package may bring modules of any name: what is not found is only suspicious.
    unnamed = [name for name in needed if _normal(DISTRIBUTIONS.get(name, name)) not in named]
    return judge(REQUIREMENTS, [], [f"{name} is imported and not listed" for name in unnamed], "all listed")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def network(evidence: Evidence) -> Finding:
    """No network calls."""
    if evidence.source is None:
        return finding("network", "not checked", f"no {CODE} that can be read")
    faults, doubts = network_use(evidence.source)
    return _if_seen(
        evidence.source, judge("network", faults, doubts, "no call of network modules or programs")
    )


def validation(evidence: Evidence) -> Finding:
    """The training path reads no validation data."""
    rule = "validation data"
    if evidence.source is None or evidence.leaks is None:
        return finding(rule, "not checked", f"no {CODE} that can be followed")
    good = "kept out of training, as far as names tell"
    result = _if_seen(
        evidence.source, judge(rule, evidence.leaks.training, evidence.leaks.perhaps_training, good)
    )
    if result.level == "ok" and not evidence.leaks.sees_shards:
        return finding(rule, "not checked", "the code does not name the shards it reads")
    return result


def score_first(evidence: Evidence) -> Finding:
    """No token is scored after it was trained on."""
    rule = "score first"
    if evidence.source is None or evidence.leaks is None:
        return finding(rule, "not checked", f"no {CODE} that can be followed")
    doubts = [
        f"{line}: whether each was scored before cannot be told here" for line in evidence.leaks.perhaps_late
    ]
    good = "no training on validation tokens found"
    return _if_seen(evidence.source, judge(rule, evidence.leaks.late, doubts, good))


def documents(evidence: Evidence) -> Finding:
    """No layer mixes the last token of a document into the first of the next."""
    rule = "documents"
    if evidence.source is None:
        return finding(rule, "not checked", f"no {CODE} that can be read")
    try:
        mixing = find_mixing(evidence.source)
    except RecursionError:
        return finding(rule, "not checked", "expressions are nested too deeply to be followed")
    good = "no gate found that mixes neighbouring tokens"
    if mixing.masked:
        good = "; ".join(f"{line}, masked" for line in mixing.masked[:2])
    return _if_seen(evidence.source, judge(rule, mixing.certain, mixing.perhaps, good))


def prediction(evidence: Evidence) -> Finding:
    """A token's probability is made without the token and those after it."""
    rule = "prediction"
    if evidence.source is None:
        return finding(rule, "not checked", f"no {CODE} that can be read")
    good = "nothing found that reads a token before it is scored"
    return _if_seen(evidence.source, judge(rule, [], doubts_of_prediction(evidence.source), good))


def _if_seen(source: Source, result: Finding) -> Finding:
    """Code that cannot be seen may do anything: then nothing found is not "ok"."""
    if result.level == "ok" and source.opaque:
        return finding(result.rule, "not checked", source.opaque[0])
    return result
