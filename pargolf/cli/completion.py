"""The command that prints what a shell needs to complete pargolf's commands and options."""

import contextlib
import io
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from pargolf.cli.compress import CompressArgs, DecompressArgs
from pargolf.cli.explain import ExplainArgs
from pargolf.cli.export import ExportArgs
from pargolf.cli.parse import RunArgs, TrainArgs, parse
from pargolf.cli.runs import DataArgs, EvalArgs, FinewebArgs, ListArgs, PackArgs, PlanArgs, SampleArgs
from pargolf.cli.study import AblateArgs, AnalyzeArgs, CompareArgs, PredictArgs, ReportArgs, SweepArgs
from pargolf.cli.submit import CheckArgs, ImportLogArgs, SubmitArgs, VerifyArgs


@dataclass
class CompletionArgs:
    """Print a script for a shell, which then completes the commands and options of pargolf."""

    shell: tyro.conf.Positional[Literal["bash", "zsh"]]
    """In bash: source <(pargolf completion bash). In zsh: pargolf completion zsh > ~/.zfunc/_pargolf, with
    ~/.zfunc in $fpath."""


@dataclass(kw_only=True)
class AllDataArgs(DataArgs):
    """What may follow `pargolf data`."""

    source: Annotated[FinewebArgs, tyro.conf.subcommand("fineweb")] | Annotated[None, tyro.conf.Suppress]


# What each command takes.
ARGUMENTS: dict[str, Any] = {
    "data": AllDataArgs,
    "plan": PlanArgs,
    "config": RunArgs,
    "train": TrainArgs,
    "pack": PackArgs,
    "eval": EvalArgs,
    "run": RunArgs,
    "list": ListArgs,
    "sample": SampleArgs,
    "explain": ExplainArgs,
    "compress": CompressArgs,
    "decompress": DecompressArgs,
    "export": ExportArgs,
    "analyze": AnalyzeArgs,
    "compare": CompareArgs,
    "ablate": AblateArgs,
    "sweep": SweepArgs,
    "predict": PredictArgs,
    "report": ReportArgs,
    "submit": SubmitArgs,
    "check": CheckArgs,
    "verify": VerifyArgs,
    "import-log": ImportLogArgs,
    "completion": CompletionArgs,
}


# What tyro's scripts lack: they complete no file where a positional argument stands, as a run's folder does.
AMENDED = {
    'if [[ "$completions" ==': 'if [[ -z "$completions" || "$completions" ==',
    'compgen -f -- "$cur"': 'compgen -f -- "${COMP_WORDS[COMP_CWORD]}"',
    "complete -F": "complete -o filenames -F",
}


def completion(argv: list[str]) -> None:
    """Print a script for bash or zsh that completes commands and options."""
    print(script(parse(CompletionArgs, argv, "pargolf completion").shell), end="")


def script(shell: str) -> str:
    """The script for "bash" or "zsh", made by tyro."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            ARGUMENTS,
            prog="pargolf",
            args=["--tyro-print-completion", shell],
            config=(tyro.conf.OmitSubcommandPrefixes,),
        )
    text = printed.getvalue()
    for theirs, ours in AMENDED.items():
        text = text.replace(theirs, ours)
    # They also take each line of a description for a completion of its own.
    return re.sub(r"^COMPLETION_SPEC.*$", lambda spec: re.sub(r"(?<!\\)\\n", " ", spec[0]), text, flags=re.M)
