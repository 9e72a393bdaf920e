"""Draws docs/concepts.svg, plain rows and the sliding window: `python docs/windows_figure.py`."""

from pathlib import Path

from pargolf.score.windows import Window, windows

TOKENS, SEQ_LEN, STRIDE = 32, 16, 4  # the proportions of a figure; the challenge's are 1024 and 64
WIDTH, HEIGHT = 20, 14
READ, SCORED = "#b8c4d6", "#c2541c"


def bars(plan: list[Window], top: int) -> list[str]:
    """Each window on a line of its own: what it reads, and the part that it scores."""
    found = []
    for line, w in enumerate(plan):
        y = top + line * (HEIGHT + 4)
        for start, length, colour in ((0, w.first, READ), (w.first, w.length - w.first, SCORED)):
            x = 10 + (w.start + start) * WIDTH
            if length:
                size = f'width="{length * WIDTH}" height="{HEIGHT}"'
                found.append(f'<rect x="{x}" y="{y}" {size} fill="{colour}"/>')
    return found


def figure() -> str:
    rows, sliding = windows(TOKENS, SEQ_LEN, SEQ_LEN), windows(TOKENS, SEQ_LEN, STRIDE)
    below = 30 + len(rows) * (HEIGHT + 4) + 30
    height = below + len(sliding) * (HEIGHT + 4) + 30
    words = [
        (20, "plain rows: the first tokens of a row have little before them"),
        (below - 8, "sliding window: each scores its last tokens alone"),
        (height - 10, "orange: read and scored; grey: read, and scored by an earlier window"),
    ]
    texts = [f'<text x="10" y="{y}">{text}</text>' for y, text in words]
    size = f'width="{TOKENS * WIDTH + 20}" height="{height}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">',
            '<rect width="100%" height="100%" fill="white"/>', *texts, *bars(rows, 30), *bars(sliding, below),
            "</svg>", "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    (Path(__file__).parent / "concepts.svg").write_text(figure())
