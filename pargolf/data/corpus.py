"""Text that is there at once: the embedded Wikipedia articles, and a single file."""

import bz2
import hashlib
import re
from importlib import resources
from pathlib import Path

from pargolf.system.errors import UserError

EMBEDDED_FILE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
EMBEDDED_SHA256 = "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d"
EMBEDDED_CLEANING = 1  # raise it whenever embedded_documents gives other text for the same file

_HEADING = re.compile(r"(=+).*?\1$")
# What filter_wiki leaves of galleries and images: "File:a.jpg|caption", "140pxSalmon", "|thumb".
_IMAGE = re.compile(
    r"[*: ]*(?:File|Image) ?:|[*: ]*(?:\d+x)?\d+px|.*\|thumb$|thumb$|[*#:;|! ]+$", re.IGNORECASE
)


def embedded_documents() -> list[str]:
    """The English Wikipedia extract inside the gensim package: 106 articles, about 3 MB of text.

    Each begins with its title on a line of its own; redirects and empty pages are left out.
    The text is CC BY-SA. Raises UserError if gensim is missing or ships another file.
    """
    try:
        from gensim.corpora.wikicorpus import extract_pages, filter_wiki
    except ImportError:
        raise UserError(
            "the embedded text needs gensim; install it with: pip install 'pargolf[demo]'"
        ) from None
    path = resources.files("gensim") / "test" / "test_data" / EMBEDDED_FILE
    if not path.is_file():
        raise UserError(f"gensim has no {EMBEDDED_FILE}; install the version of constraints.txt")
    compressed = path.read_bytes()
    if hashlib.sha256(compressed).hexdigest() != EMBEDDED_SHA256:
        raise UserError(
            f"gensim's {EMBEDDED_FILE} is not the known one; install the version of constraints.txt"
        )
    documents = []
    with path.open("rb") as raw, bz2.open(raw) as dump:
        for title, markup, _ in extract_pages(dump, ("0",)):
            body = "" if markup.lstrip().lower().startswith("#redirect") else _tidy(filter_wiki(markup))
            if body:
                documents.append(f"{title}\n\n{body}\n")
    return documents


def _tidy(text: str) -> str:
    """Plain text of an article: no emphasis marks, no remains of images, templates and links."""
    text = re.sub(r"'{2,}", "", text)
    text = re.sub(r"\([\s,;:]*\)", "", text)  # "Asphalt (, , )": pronunciation templates that are gone
    text = re.sub(r"\(\s*[,;][\s,;]*", "(", text)
    text = re.sub(r"[ \t\u00a0]+", " ", text)
    text = re.sub(r" +([,.;])", r"\1", text)
    lines = [line.strip() for line in text.split("\n")]
    lines = _with_content([line for line in lines if not _IMAGE.match(line)])
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _with_content(lines: list[str]) -> list[str]:
    """`lines` without the headings of sections that have nothing in them ("==References==")."""
    kept: list[str] = []
    below = 1  # level of the heading that follows in the text; 1, the highest, at the end
    for line in reversed(lines):
        heading = _HEADING.match(line)
        level = len(heading[1]) if heading else 0
        if heading and below and below <= level:
            continue
        if line:
            below = level
        kept.append(line)
    return kept[::-1]


def read_utf8(path: Path) -> str:
    """The text of a file; UserError if it cannot be read or is not UTF-8."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: bad byte at offset {error.start}; convert it first"
        ) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
