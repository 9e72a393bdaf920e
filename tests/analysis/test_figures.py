"""The report's figures: areas that are true, SVG that follows the page's colours and is safe to inline."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargolf.analysis.figures import (
    loss_picture,
    passages_picture,
    position_picture,
    step_time_picture,
    treemap,
)
from pargolf.fit.budget import Ledger, LedgerRow

METRICS = [
    {"step": 1, "train_loss": 7.5, "lr_scale": 1.0},
    {"step": 50, "train_loss": 4.25, "lr_scale": 1.0},
    {"step": 50, "val_loss": 4.5, "val_bpb": 2.5},
    {"step": 100, "train_loss": 3.125, "lr_scale": 0.5},
]
TIMING = [{"step": 1, "seconds": 0.5}, {"step": 50, "seconds": 5.4}, {"step": 100, "seconds": 10.4}]

rows = st.lists(
    st.builds(
        LedgerRow,
        st.sampled_from(["mlp", "attn", "embed", "code"]),
        st.one_of(st.none(), st.integers(0, 11)),
        st.integers(1, 10**7),
        st.just(1),
    ),
    min_size=1,
    max_size=30,
)


@given(rows)
def test_the_treemap_tiles_the_whole_with_true_areas(rows: list[LedgerRow]) -> None:
    boxes = treemap(Ledger(tuple(rows)))
    total = sum(row.bytes for row in rows)
    assert sorted(box.bytes for box in boxes) == sorted(row.bytes for row in rows)
    for box in boxes:
        assert box.width * box.height == pytest.approx(100 * 100 * box.bytes / total, rel=1e-6)
        assert min(box.x, box.y) > -1e-6
        assert max(box.x + box.width, box.y + box.height) < 100 + 1e-6
    for i, a in enumerate(boxes):
        for b in boxes[:i]:  # areas sum to the whole, so disjoint boxes tile it
            across = min(a.x + a.width, b.x + b.width) - max(a.x, b.x)
            down = min(a.y + a.height, b.y + b.height) - max(a.y, b.y)
            assert min(across, down) < 1e-6


def test_alternative_texts_say_the_figures() -> None:
    assert loss_picture({"a": METRICS}).alt == "a: training loss 7.50 at step 1, 3.12 at step 100"
    assert step_time_picture({"a": TIMING}).alt == "a: 104.0 ms a step on average, 100.0 to 100.0"
    bits, sizes = np.array([4.0, 6.0, 3.0, 3.0]), np.array([1, 2, 2, 1])
    alt = position_picture(bits, sizes).alt
    assert alt == "4.00 bits per byte with 1 token of context, 2.00 with more than 2"
    assert "half cost less than 2.00" in passages_picture([1.0, 2.0, 3.0]).alt


def test_the_svg_has_the_page_s_colours_and_repeats() -> None:
    runs = {"a<b>$x_": METRICS, "<script>": METRICS[:3]}
    for picture in (loss_picture(runs), step_time_picture({"a": TIMING}), passages_picture([1.0, 2.0])):
        root = ET.fromstring(picture.svg)
        assert root.tag.endswith("svg")
        assert "var(--series-0)" in picture.svg and "var(--rule)" in picture.svg
        assert not re.search("#[0-9a-f]{6}", picture.svg)
        assert "<script" not in picture.svg and "<metadata" not in picture.svg
    assert "a&lt;b&gt;$x_" in loss_picture(runs).svg
    assert loss_picture(runs) == loss_picture(runs)


def test_runs_without_readings_draw_empty_axes() -> None:
    assert loss_picture({"a": []}).alt == "no training loss"
    assert step_time_picture({"a": TIMING[:1], "b": TIMING}).alt.startswith("b: ")
