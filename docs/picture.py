"""The tables of a finished run as an SVG: python docs/picture.py runs/demo docs/demo.svg"""

import json
import sys
from pathlib import Path

from pargolf.bundle.single_file import code_bytes
from pargolf.cli import tables
from pargolf.fit.budget import ledger
from pargolf.run.folder import open_run
from pargolf.system.console import console

if __name__ == "__main__":
    (run, config), picture = open_run(Path(sys.argv[1])), Path(sys.argv[2])
    console.record, console.width = True, 84
    tables.show_ledger(ledger(run.artifact.read_bytes(), code_bytes(config)))
    tables.show_result(json.loads(run.result.read_text()))
    console.save_svg(str(picture), title="pargolf run demo")
