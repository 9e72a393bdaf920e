"""A good folder keeps every rule; broken in one way, exactly the rule in question says so."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pargolf.check.check import find_record
from pargolf.check.figures import RecordToBeat
from pargolf.cli import dispatch
from pargolf.system.errors import UserError
from submission_support import by_rule, code, log, packed, submission_json
from support import pargolf


def loud_log(folder: Path) -> None:
    """All logs end their evaluation later."""
    for seed in (1337, 42, 7):
        log(folder, seed, "eval_time:83873ms", "eval_time:601000ms")


def one_seed(folder: Path) -> None:
    for seed in (42, 7):
        (folder / f"train_seed{seed}.log").unlink()
    figures = json.loads((folder / "submission.json").read_text())["seed_results"]["1337"]
    submission_json(folder, seed_results={"1337": figures}, val_loss=1.95012345, val_bpb=1.15498765)


def grow(folder: Path) -> None:
    """A model that takes the folder over the limit, stated truly."""
    size = 16_000_000 - (folder / "train_gpt.py").stat().st_size + 1
    before = (folder / "final_model.int6.ptz").stat().st_size
    for path in [*folder.glob("*.log"), folder / "submission.json"]:
        text = path.read_text().replace(str(before), str(size))
        code_bytes = (folder / "train_gpt.py").stat().st_size
        path.write_text(text.replace(str(before + code_bytes), str(size + code_bytes)))
    os.truncate(folder / "final_model.int6.ptz", size)


def local_module(folder: Path) -> None:
    (folder / "tables.py").write_text("X = 1\n")
    code(folder, "import zstandard\n", "import zstandard\nimport tables\n")


def no_network_in_sight(folder: Path) -> None:
    code(folder, "import os\n", "import os\nfrom urllib.request import urlopen\n")
    code(folder, "args = Args()\n", "args = Args()\n    urlopen('file:x')\n")


ADAPT = """
def adapt(model, tokens):
    x, y = tokens[:-1], tokens[1:]
    loss = model(x, y)
    loss.backward()


def main():
"""


def own_package(folder: Path) -> None:
    (folder / "src").mkdir()
    (folder / "src/model.py").write_text("class GPT: ...")
    code(folder, "import zlib\n", "import zlib\nfrom src.model import GPT\n")


def adapt_first(folder: Path) -> None:
    code(folder, "\ndef main():\n", ADAPT)
    code(folder, "    blob = zst", "    adapt(model, val_tokens)\n    blob = zst")


NO_JSON = {"bytes stated", "scores stated", "steps stated"}
UNSEEN = {"network", "validation data", "score first", "documents", "prediction"}

GATE = """
class Smear(torch.nn.Module):
    def forward(self, x, ids):
        return torch.cat([x[:, :1], x[:, 1:] + 0.1 * x[:, :-1]], dim=1)


def attend(smear, q, ids, cu_seqlens):
    return flash_attn_varlen_func(smear(q, ids), q, q, cu_seqlens, causal=True)


smear = Smear()


def main():
"""


def fewer_steps(folder: Path) -> None:
    figures = json.loads((folder / "submission.json").read_text())["seed_results"]
    submission_json(folder, seed_results=figures | {"42": figures["42"] | {"steps": 7700}})


def bytes_counted_twice(folder: Path) -> None:
    for seed in (1337, 42, 7):
        log(folder, seed, "val_bpb:1.1", "val_bpb:1.0")
        log(folder, seed, "warmup_step:1/20", "val_tokens: 40540160")
    text = (folder / "submission.json").read_text()
    (folder / "submission.json").write_text(text.replace("1.15", "1.05"))


def scored_again(folder: Path) -> None:
    log(folder, 42, "warmup_step:1/20", "val_tokens: 62021632")
    log(folder, 42, "stride:64 eval", "stride:64 tokens:62021633 bytes:151078442 eval")


def epochs(folder: Path) -> None:
    """Every epoch scores what the one before it trained on."""
    code(
        folder,
        "        for start in range(0, val",
        "      for epoch in range(3):\n        for start in range(0, val",
    )
    code(folder, "            batch_loss = model(x, y).detach()\n", "            model(x, y).backward()\n"
         "            batch_loss = model(x, y).detach()\n")  # fmt: skip


# What is done to the folder; the rule that must name it; words of the message; rules that then
# cannot be checked.
BREAKS: dict[str, tuple[Callable[[Path], object], str, str, set[str]]] = {
    "no README": (lambda f: (f / "README.md").unlink(), "README.md", "missing", set()),
    "empty README": (lambda f: (f / "README.md").write_text(" \n"), "README.md", "empty", set()),
    "huge README": (lambda f: os.truncate(f / "README.md", 10**12), "README.md", "not read", set()),
    "no submission.json": (
        lambda f: (f / "submission.json").unlink(), "submission.json", "missing",
        NO_JSON,
    ),
    "submission.json is no JSON": (
        lambda f: (f / "submission.json").write_text("{'author': 1}"), "submission.json",
        "not valid JSON", NO_JSON,
    ),
    "submission.json with NaN": (
        lambda f: (f / "submission.json").write_text('{"val_bpb": NaN}'), "submission.json",
        "NaN is no JSON number", NO_JSON,
    ),
    "submission.json nested too deep": (
        lambda f: (f / "submission.json").write_text("[" * 100_000), "submission.json",
        "not valid JSON", NO_JSON,
    ),
    "no github_id": (
        lambda f: submission_json(f, github_id=...), "submission.json", "github_id is missing", set()
    ),
    "score as text": (
        lambda f: submission_json(f, val_loss="1.95"), "submission.json", "val_loss must be a number", set()
    ),
    "null for a score": (
        lambda f: submission_json(f, val_bpb=None), "submission.json", "val_bpb is missing", set()
    ),
    "true for bytes": (
        lambda f: submission_json(f, bytes_code=True), "submission.json", "bytes_code must be a whole", set()
    ),
    "date": (lambda f: submission_json(f, date="20th of March"), "submission.json", "ISO date", set()),
    "no code": (
        lambda f: (f / "train_gpt.py").unlink(), "train_gpt.py", "missing",
        {"syntax", "requirements.txt", "bytes", "bytes stated"} | UNSEEN,
    ),
    "code beside the code": (local_module, "train_gpt.py", "imports tables", set()),
    "code from a file": (
        lambda f: code(f, "args = Args()\n", "exec(open('README.md').read())\n    args = Args()\n"),
        "train_gpt.py", "runs code from another file", UNSEEN,
    ),
    "syntax": (
        lambda f: code(f, "def main():", "def main(:"), "syntax", "line 45",
        {"train_gpt.py", "requirements.txt"} | UNSEEN,
    ),
    "syntax of the packed code": (
        lambda f: packed(f, "def main(:"), "syntax", "of the unpacked code",
        {"train_gpt.py", "requirements.txt"} | UNSEEN,
    ),
    "no requirements": (
        lambda f: (f / "requirements.txt").unlink(), "requirements.txt", "zstandard is imported", set()
    ),
    "log of a stated seed missing": (
        lambda f: (f / "train_seed7.log").unlink(), "seeds", "no log of seed 7", set()
    ),
    "copied log": (
        lambda f: shutil.copy(f / "train_seed42.log", f / "train_seed7.log"), "seeds",
        "no log of seed 7", set(),
    ),
    "log named after another seed": (
        lambda f: (f / "train_seed7.log").rename(f / "train_seed8.log"), "seeds",
        "train_seed8.log is the log of seed 7", set(),
    ),
    "over the limit": (grow, "bytes", "1 over 16,000,000", set()),
    "bytes of the code": (
        lambda f: submission_json(f, bytes_code=47_642), "bytes stated", "bytes_code is 47,642", set()
    ),
    "bytes in all": (
        lambda f: submission_json(f, bytes_total=1_000_000), "bytes stated", "bytes_total is 1,000,000", set()
    ),
    "bytes of a seed": (
        lambda f: log(f, 42, "Total submission size int6+zstd: 1", "Total submission size int6+zstd: 2"),
        "bytes stated", "seed 42:", set(),
    ),
    "val_bpb": (
        lambda f: submission_json(f, val_bpb=1.1541), "scores stated", "val_bpb is 1.1541", set()
    ),
    "val_loss": (
        lambda f: submission_json(f, val_loss=1.9401), "scores stated", "val_loss is 1.9401", set()
    ),
    "score of a seed": (
        lambda f: log(f, 42, "1.95112345", "1.95122345"), "scores stated",
        "seed 42: val_loss is 1.95112345", set(),
    ),
    "bits that do not follow from nats": (
        lambda f: log(f, 42, "stride:64 eval", "stride:64 tokens:71526 bytes:202030 eval"), "scores stated",
        "train_seed42.log: val_bpb is not val_loss / ln 2 x tokens / bytes", set(),
    ),
    "record claimed from one seed": (one_seed, "record", "1 scored seeds", set()),
    "training too long": (
        lambda f: log(f, 42, "train_time:600021ms", "train_time:601100ms"), "training time",
        "train_seed42.log: 601.1 s", set(),
    ),
    "evaluation too long": (loud_log, "evaluation time", "601.0 s", set()),
    "download": (no_network_in_sight, "network", "calls urllib.request.urlopen", set()),
    "download by a program": (
        lambda f: code(f, '["nvidia-smi"]', '["wget", "-q", Args.data_path]'), "network",
        "subprocess.run with wget", set(),
    ),
    "download in the packed code": (
        lambda f: packed(f, "\n__import__('requests').get('x')\n"), "network", "calls requests.get", set()
    ),
    "training on validation shards": (
        lambda f: code(f, "Loader(args.train_files)", "Loader(args.val_files)"), "validation data",
        "makes train_loader of validation data", set(),
    ),
    "training on all shards": (
        lambda f: code(f, "fineweb_train_*.bin", "fineweb_*.bin"), "validation data",
        "makes train_files of validation data", set(),
    ),
    "calibration on validation data": (
        lambda f: code(f, "    blob =", "    stats = collect_hessians(model, val_tokens)\n    blob ="),
        "validation data", "calls collect_hessians", set(),
    ),
    "code read from a file and run": (
        lambda f: code(f, "\ndef main():\n", "\nexec(Path('model.txt').read_text())\ndef main():\n"),
        "train_gpt.py", "runs code from another file",
        {"documents", "network", "prediction", "score first", "validation data"},
    ),
    "a package without __init__.py": (own_package, "train_gpt.py", "src.model", set()),
    "adapting before scoring": (adapt_first, "score first", "scores them after", set()),
    "a gate over packed documents": (
        lambda f: code(f, "\ndef main():\n", GATE), "documents", "with no mask at BOS", set()
    ),
    "epochs over the same tokens": (epochs, "score first", "scores them again in each epoch", set()),
    "steps of a seed": (fewer_steps, "steps stated", "seed 42: 7,700 steps are stated", set()),
    "milliseconds a step": (
        lambda f: submission_json(f, ms_per_step=70.1), "steps stated", "the log gives 77.60", set()
    ),
    "a ratio that moves": (
        lambda f: log(f, 42, "val_loss:1.9600 val_bpb:1.1608", "val_loss:1.9600 val_bpb:1.1490"),
        "validation text", "train_seed42.log: val_loss / val_bpb is 1.70583 at step 7732", set(),
    ),
    "a fifth of the documents": (
        lambda f: log(f, 42, "warmup_step:1/20", "ttt_lora:docs:10000 rank:8"), "validation text",
        "scores 10,000 of 50,000 documents", set(),
    ),
    "bytes counted twice": (
        bytes_counted_twice, "validation text", "million bytes, the challenge's text has 151.08", set()
    ),
    "tokens scored more than once": (scored_again, "validation text", "some more than once", set()),
    "a link that leaves": (
        lambda f: (f / "notes.md").symlink_to("/etc/hostname"), "folder",
        "notes.md is a link that leaves", set(),
    ),
    "a pipe": (lambda f: os.mkfifo(f / "train_seed9.log"), "folder", "neither a file nor a folder", set()),
}  # fmt: skip


def test_the_good_folder_keeps_every_rule(good: Path) -> None:
    assert {found.level for found in by_rule(good).values()} == {"ok"}


@pytest.mark.parametrize("name", BREAKS)
def test_one_fault_is_named_and_nothing_else(good: Path, name: str) -> None:
    damage, rule, words, unseen = BREAKS[name]
    damage(good)
    found = by_rule(good)
    assert {r for r, f in found.items() if f.level == "fault"} == {rule}
    assert words in found[rule].message
    assert {r for r, f in found.items() if f.level == "not checked"} == unseen


def test_the_command_line(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = pargolf("check", good, "--against", "1.1748")
    assert done.returncode == 0, done.stderr
    assert "p = 0.0002" in done.stdout
    (good / "README.md").unlink()
    assert dispatch(["check", str(good)]) == 2
    printed = capsys.readouterr()
    assert re.search(r"README.md +│ fault", printed.out)
    assert printed.err == f"pargolf: error: {good} breaks 1 of 21 rules: README.md\n"
    assert dispatch(["check", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err


def test_the_record_is_a_number_or_a_folder(good: Path, tmp_path: Path) -> None:
    assert find_record("1.1748") == RecordToBeat("1.1748", 1.1748)
    for path in (good, good / "submission.json"):
        assert find_record(str(path)) == RecordToBeat("Low-rank queries", 1.15557992)
    with pytest.raises(UserError, match="neither a number nor"):
        find_record(str(tmp_path / "none"))
    with pytest.raises(UserError, match="between 0 and"):
        find_record("inf")
    submission_json(good, val_bpb=None)
    with pytest.raises(UserError, match="states no val_bpb"):
        find_record(str(good))


def test_a_model_in_two_files_is_asked_about(good: Path) -> None:
    model = good / "final_model.int6.ptz"
    assert by_rule(good)["bytes"].level == "ok"
    for name in ("part_a.ptz", "part_b.ptz"):
        (good / name).write_bytes(bytes(9_000_000))
    assert model.exists() and by_rule(good)["bytes"].level == "warning"
    assert "parts of one model" in by_rule(good)["bytes"].message


def test_a_title_is_no_markup(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = good.rename(good.parent / "[moe] a[")
    assert dispatch(["check", str(folder)]) == 0
    assert "[moe] a[" in capsys.readouterr().out.replace("\n", "")
