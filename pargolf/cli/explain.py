"""The command that looks at one text: no logic beyond reading arguments and printing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pargolf.cli.parse import OptionalPath, parse


@dataclass
class ExplainArgs:
    """Show what each token of a text costs, and where its bits go by kind of token and by context.

    On a terminal the text is colored; in a pipe each token has a line of its own, with tabs.
    """

    artifact: tyro.conf.Positional[Path]
    """A model.pgz or a run's folder."""
    text: Path
    """UTF-8 file, scored as one document."""
    out: Annotated[OptionalPath, tyro.conf.arg(aliases=["-o"])] = None
    """HTML page to write, instead of the text on the terminal."""
    stride: int = 64
    """Tokens each window after the first scores."""
    tokenizer: OptionalPath = None
    """Tokenizer of an artifact outside its run folder."""


def explain(argv: list[str]) -> None:
    """Show a text's bits token by token, on the terminal or as an HTML page."""
    args = parse(ExplainArgs, argv, "pargolf explain")
    import pargolf
    from pargolf.analysis import explained
    from pargolf.analysis.explain import explain
    from pargolf.data.corpus import read_utf8
    from pargolf.system.console import Bar, say
    from pargolf.system.errors import require

    text = read_utf8(args.text)
    require(bool(text), f"{args.text} is empty: there is no byte to score")
    model = pargolf.load(args.artifact, args.tokenizer)
    with Bar("bits of each token") as bar:
        explanation = explain(model, text, args.stride, bar)
    if args.out is None:
        explained.show_text(explanation)
    explained.show_tables(explanation)
    if args.out is not None:
        explained.write_page(args.out, explanation, str(args.artifact), str(args.text))
        say(f"written: {args.out}")
