"""What "auto" takes: the smallest sum of file and code, found by trying everything."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch

from artifact_support import SHA, SLOTS, TINY
from pargolf.config.schema import ExportConfig, RunConfig
from pargolf.config.settings import with_codec
from pargolf.config.validation import TOP_LEVEL
from pargolf.export.artifact import pack_stored, read_header
from pargolf.export.codec import CODECS
from pargolf.export.quantize import quantize_state
from pargolf.export.section import LAYOUTS
from pargolf.fit.smallest import pack_smallest
from pargolf.system.errors import UserError

AUTO = ExportConfig(codec="auto", layout="auto")


def state() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return {name: torch.randn(64, 128, generator=g) / torch.rand(64, 128, generator=g) for name in SLOTS}


@pytest.mark.parametrize(("range_code", "won"), [(0, True), (10**6, False)])
def test_file_and_code_together_decide(range_code: int, won: bool) -> None:
    def code(config: RunConfig) -> int:
        x = config.export
        return 500 * list(CODECS).index(x.codec) + (range_code if x.layout == "range" else 0)

    config = RunConfig(TINY, export=AUTO)
    stored = quantize_state(state(), SLOTS, AUTO)
    totals = {}
    for codec, layout in product(CODECS, LAYOUTS):
        export = with_codec(AUTO, codec, layout)
        size = len(pack_stored(stored, SLOTS, TINY, export, SHA))
        totals[export] = size + code(replace(config, export=export))
    data = pack_smallest(stored, SLOTS, config, SHA, code)
    chosen = read_header(data).export
    assert totals[chosen] == min(totals.values())
    assert (chosen.layout == "range") == won
    assert data == pack_stored(stored, SLOTS, TINY, chosen, SHA)


@pytest.mark.parametrize("given", [{"codec": "zlib", "level": 9}, {"layout": "planes"}, {"layout": "range"}])
def test_what_is_set_stays(given: dict[str, Any]) -> None:
    export = replace(AUTO, **given)
    stored = quantize_state(state(), SLOTS, export)
    chosen = read_header(
        pack_smallest(stored, SLOTS, RunConfig(TINY, export=export), SHA, lambda config: 0)
    ).export
    assert {name: getattr(chosen, name) for name in given} == given
    assert "auto" not in (chosen.codec, chosen.layout)
    assert chosen.level == TOP_LEVEL[chosen.codec]


def test_another_codec_takes_its_highest_level() -> None:
    export = ExportConfig(level=3)
    assert with_codec(export) == export
    assert with_codec(export, layout="range") == replace(export, layout="range")
    assert with_codec(export, "zlib") == replace(export, codec="zlib", level=9)
    with pytest.raises(UserError, match=r"export\.codec must be one of"):
        with_codec(export, "gzip")
