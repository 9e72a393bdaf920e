"""An explanation to look at: coloured text and tables on a terminal, lines in a pipe, an HTML page."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pargolf.analysis import pages
from pargolf.analysis.explain import CostRow, Explanation, Token
from pargolf.score.passages import LEVELS, level
from pargolf.system.console import console
from pargolf.system.escape import visible
from pargolf.system.files import write_atomic

# From none to red, in the sixteen colours that every terminal has, dark or light.
STYLES = (
    "", "black on white", "black on bright_yellow", "black on yellow", "black on bright_red",
    "bright_white on red",
)  # fmt: skip


def show_text(explanation: Explanation) -> None:
    """Print the text, coloured by what it costs; in a pipe one line a token, with tabs."""
    if not console.is_terminal:
        print("\n".join(lines(explanation)))
        return
    legend = Text("bits per byte of a token: ")
    for i, limit in enumerate((0, *LEVELS)):
        legend.append(f" {limit:g}+ ", STYLES[i]).append(" ")
    text = Text()
    for span in explanation.spans:
        text.append(visible(span.text, "↵\n"), STYLES[level(span)])
    console.print(legend, "", text, "", sep="\n")


def lines(explanation: Explanation) -> Iterator[str]:
    """One line a token, fields separated by tabs, below a line of their names."""
    yield "piece\tkind\tbytes\tbits\trank\tcontext\tlikeliest"
    for token in explanation.tokens:
        best, share = token.likeliest[0]
        figures = f"{token.bytes}\t{token.bits:.4f}\t{token.rank}\t{token.context}"
        yield f"{visible(token.piece)}\t{token.kind}\t{figures}\t{visible(best)} {share:.4f}"


def show_tables(explanation: Explanation) -> None:
    """Print where the bits go: by kind of token, and by how much text was before it."""
    console.print(_table(explanation, "kind of token", explanation.by_kind()))
    console.print(_table(explanation, "tokens of context", explanation.by_context()))


def _table(explanation: Explanation, what: str, rows: Sequence[CostRow]) -> Table:
    table = Table(title=f"bits by {what}", title_justify="left")
    for column in (what, "tokens", "bytes", "bits", "bits/byte", "share of bits"):
        table.add_column(column, justify="left" if column == what else "right")
    for row in (*rows, explanation.total):
        bpb = "" if row.bpb is None else f"{row.bpb:.4f}"
        if row is explanation.total:
            table.add_section()
        table.add_row(
            row.label,
            f"{row.tokens:,}",
            f"{row.bytes:,}",
            f"{row.bits:,.1f}",
            bpb,
            f"{explanation.share(row):.1%}",
        )
    return table


def write_page(path: Path, explanation: Explanation, artifact: str, text: str) -> None:
    """Write the explanation as one HTML page; `artifact` and `text` are what it calls its two sources."""
    page = pages.render("explain.html.j2", e=explanation, artifact=artifact, text=text, told=told)
    write_atomic(path, page.encode())


def told(tokens: Sequence[Token]) -> str:
    """What a reader sees who points at the text of `tokens`: a few lines for each."""
    return "\n".join(
        f"{visible(token.piece)}: {token.bits:.2f} bits, {token.bytes} byte{'s' if token.bytes != 1 else ''},"
        f" rank {token.rank}, {token.kind}, context {token.context}\n"
        f"likeliest: {', '.join(f'{visible(piece)} {share:.1%}' for piece, share in token.likeliest)}"
        for token in tokens
    )
