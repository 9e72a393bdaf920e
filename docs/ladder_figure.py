"""The effects of screens as an SVG: python docs/ladder_figure.py runs/alone docs/ladder.svg runs/screen-model

The first folder holds repeated runs, whose spread is taken for chance.
"""

import sys
from pathlib import Path

from pargolf.analysis.figures import VARIABLES, effects_picture
from pargolf.study.screen import read_screen

if __name__ == "__main__":
    repeats, out, *studies = map(Path, sys.argv[1:])
    picture = effects_picture([read_screen(study, repeats) for study in studies]).svg
    for color, variable in VARIABLES.items():
        picture = picture.replace(f"var({variable})", color)  # no page around it that defines them
    paper = '<rect width="100%" height="100%" fill="white"/>'
    out.write_text(picture.replace(">", f">{paper}", 1).replace("<svg", '<svg font-family="sans-serif"', 1))
