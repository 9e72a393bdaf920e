"""Every command of the documentation is one that pargolf takes; the quick ones are run."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from pargolf.cli import COMMANDS, dispatch
from pargolf.cli.completion import ARGUMENTS
from pargolf.cli.parse import RunArgs, parse, preset_args
from pargolf.cli.runs import DataArgs, FinewebArgs
from pargolf.cli.tables import show_needs
from pargolf.config.environment import ENVIRONMENT
from pargolf.config.presets import load_preset
from pargolf.plan.forecast import forecasts
from pargolf.plan.needs import needs

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
# What stands for a word of one's own.
PLACEHOLDERS = {
    "PRESET": "demo", "STACK": "demo", "RUN...": "RUN", "N": "100000000", "L": "0.1", "FORM": "readable",
    "...": "X",
}  # fmt: skip


def commands() -> list[str]:
    """Those of fenced blocks and of `code`, as typed; a command's bare name in a sentence is none."""
    found = set()
    for page in PAGES:
        if page.name != "log.md":
            text = page.read_text().replace("\\\n", " ")
            fenced = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
            rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
            lines = [line for block in fenced for line in block.splitlines()]
            lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", rest)]
            found |= {line.strip() for line in lines if line.strip().startswith("pargolf ")}
            found |= {
                "pargolf " + line.partition("-m pargolf ")[2] for line in lines if "-m pargolf " in line
            }
    return sorted(line for line in found if len(words(line)) > 1)


def words(line: str) -> list[str]:
    typed = shlex.split(line, comments=True)[1:]
    ends = [i for i, word in enumerate(typed) if word in ("|", ">")]
    return [PLACEHOLDERS.get(word, word) for word in typed[: ends[0] if ends else None]]


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_documentation_is_understood(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("[model]\nq_rank = 64\n")
    monkeypatch.setattr("pargolf.cli.parse.with_dataset", lambda args, name: args)  # there is none here
    command, *arguments = words(line)
    assert command in COMMANDS
    kind = ARGUMENTS[command]
    if command == "data":
        kind = FinewebArgs if arguments[:1] == ["fineweb"] else DataArgs
        arguments = arguments[kind is FinewebArgs :]
    if issubclass(kind, RunArgs):
        preset_args(kind, arguments, command)
    else:
        parse(kind, arguments, f"pargolf {command}")


@pytest.mark.parametrize("line", [line for line in commands() if words(line)[0] in ("config", "completion")])
def test_a_quick_command_runs(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(words(line)) == 0
    assert capsys.readouterr().out


def test_there_are_commands_to_try() -> None:
    assert len(commands()) > 40


def test_the_table_of_commands_has_each() -> None:
    page = (ROOT / "docs/commands.md").read_text()
    assert set(re.findall(r"^\| `pargolf ([\w-]+)", page, re.M)) == COMMANDS.keys()


def test_each_environment_variable_is_in_its_page_with_its_setting() -> None:
    page = (ROOT / "docs/from-train-gpt.md").read_text()
    assert dict(re.findall(r"^\| `([A-Z0-9_]+)` \| `([a-z_.0-9]+)` \|$", page, re.M)) == ENVIRONMENT
    for path in re.findall(r"`(pargolf/[\w./-]+)`", page):
        assert (ROOT / path).exists(), path


def test_the_figures_for_eight_gpus_are_those_of_plan(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_preset("lowrank-q192")
    monkeypatch.setattr("pargolf.plan.forecast.cpu_step_seconds", lambda config, dtype: 1.0)
    eight = forecasts(config)[0]
    show_needs(eight.machine, needs(config, eight), 20)
    page = (ROOT / "docs/eight-gpus.md").read_text().splitlines()
    assert [line for line in capsys.readouterr().out.splitlines() if line.rstrip() not in page] == []


def test_each_figure_and_page_that_is_linked_is_there() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", page.read_text()):
            assert (page.parent / link).exists(), (page, link)


def test_the_figure_of_the_concepts_is_what_its_script_draws() -> None:
    figure = runpy.run_path(str(ROOT / "docs/windows_figure.py"))["figure"]
    assert (ROOT / "docs/concepts.svg").read_text() == figure()
