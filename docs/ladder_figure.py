"""The effects of screens as an SVG: python docs/ladder_figure.py runs/alone docs/ladder.svg runs/screen-model

The first folder holds repeated runs, whose spread is taken for chance.
"""

import sys
from pathlib import Path

from pargolf.analysis.figures import effects_picture, on_paper
from pargolf.study.screen import read_screen

if __name__ == "__main__":
    repeats, out, *studies = map(Path, sys.argv[1:])
    picture = effects_picture([read_screen(study, repeats) for study in studies])
    out.write_text(on_paper(picture.svg))
