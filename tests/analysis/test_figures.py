"""The report's figures: areas that are true, SVG that follows the page's colours and is safe to inline."""

import dataclasses
import re
import xml.etree.ElementTree as ET
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargolf.analysis.figures import (
    SERIES,
    Line,
    along_picture,
    front_picture,
    loss_picture,
    passages_picture,
    position_picture,
    step_time_picture,
    treemap,
    weight_pictures,
)
from pargolf.analysis.plots import ON_DARK, ON_LIGHT, layer_colors
from pargolf.analysis.weights import analyze_run
from pargolf.fit.budget import Ledger, LedgerRow
from pargolf.run.folder import Run
from pargolf.study.records import RunRecord

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
    assert loss_picture([Line("a", [METRICS])]).alt == (
        "a: training loss 7.50 at step 1, training loss 3.12 at step 100, validation loss 4.50 at step 50"
    )
    assert step_time_picture([Line("a", [TIMING])]).alt == "a: 104.0 ms a step on average, 100.0 to 100.0"
    bits, sizes = np.array([4.0, 6.0, 3.0, 3.0]), np.array([1, 2, 2, 1])
    alt = position_picture(bits, sizes).alt
    assert alt == "4.00 bits per byte with 1 token of context, 2.00 with more than 2"
    assert "half cost less than 2.00" in passages_picture([1.0, 2.0, 3.0]).alt


def test_the_svg_has_the_page_s_colours_and_repeats() -> None:
    runs = [Line("a<b>$x_", [METRICS]), Line("<script>", [METRICS[:3]])]
    times = step_time_picture([Line("a", [TIMING])])
    for picture in (loss_picture(runs), times, passages_picture([1.0, 2.0])):
        root = ET.fromstring(picture.svg)
        assert root.tag.endswith("svg")
        assert "var(--series-0)" in picture.svg and "var(--rule)" in picture.svg
        assert not re.search("#[0-9a-f]{6}", picture.svg)
        assert "<script" not in picture.svg and "<metadata" not in picture.svg
    assert "a&lt;b&gt;$x_" in loss_picture(runs).svg
    assert loss_picture(runs) == loss_picture(runs)


def test_runs_without_readings_draw_empty_axes() -> None:
    assert loss_picture([Line("a", [[]])]).alt == "no losses"
    lines = [Line("a", [TIMING[:1]]), Line("b", [TIMING])]
    assert step_time_picture(lines).alt.startswith("b: ")


def test_runs_of_several_seeds_are_one_line_of_means() -> None:
    steps = {"step": 10, "train_loss": 6.0}, {"step": 20, "train_loss": 5.0}, {"step": 30, "train_loss": 4.0}
    other = {"step": 10, "train_loss": 8.0}, {"step": 20, "train_loss": 7.0}
    late = {"step": 15, "train_loss": 7.0}, {"step": 20, "train_loss": 6.0}
    picture = loss_picture([Line("a", [steps, other]), Line("b", [steps, late])])
    assert picture.alt == (
        "a, mean of 2 runs: training loss 7.00 at step 10, training loss 6.00 at step 20; "
        "b, mean of 2 runs: training loss 6.25 at step 15, training loss 5.50 at step 20"
    )
    assert "means over random seeds" in picture.caption
    assert "mean" not in loss_picture([Line("a", [steps]), Line("b", [other])]).caption
    # Trainings that a clock ended have no step of validation in common: each reading is a dot.
    ends = [[{"step": 90, "val_loss": 4.0}], [{"step": 97, "val_loss": 3.5}]]
    assert loss_picture([Line("a", ends)]).alt == "a, mean of 2 runs: validation loss 3.50 at step 97"


def test_no_more_lines_than_colours() -> None:
    lines = [Line(f"run {i}", [METRICS]) for i in range(len(SERIES) + 3)]
    picture = loss_picture(lines)
    assert picture.alt.count("validation loss") == len(SERIES)
    assert f"The first {len(SERIES)} of {len(lines)}" in picture.caption


def test_the_front_is_joined_and_the_budget_a_line_where_it_is_near() -> None:
    runs = [RunRecord("a", 1.5, bytes_total=10**6), RunRecord("b", 1.0, bytes_total=2 * 10**6)]
    for budget, lines in ((2_500_000, 1), (16_000_000, 0)):
        records = [dataclasses.replace(record, budget=budget) for record in runs]
        picture = front_picture(records, records)
        assert picture.alt == "Pareto front; a: 1.5000 in 1,000,000 bytes; b: 1.0000 in 2,000,000 bytes"
        assert picture.svg.count(">budget</text>") == lines
        assert f"within the budget ({budget:,} bytes)" in picture.caption
    assert "no run is within the budget" in front_picture(runs, []).alt


def test_lines_stand_out_from_light_and_dark_paper() -> None:
    css = (files("pargolf.analysis") / "page.html.j2").read_text()
    light, dark = re.findall("--paper: (#[0-9a-f]{6})", css)
    series = re.findall("--series-[0-9]: (#[0-9a-f]{6})", css)
    half = len(SERIES)
    assert series[:half] == list(SERIES) and len(series) == 2 * half
    on_light, on_dark = (layer_colors(48, part) for part in (ON_LIGHT, ON_DARK))
    assert on_light == layer_colors(48)
    for paper, colors in ((light, [*series[:half], *on_light]), (dark, [*series[half:], *on_dark])):
        assert min(contrast(paper, color) for color in colors) >= 3  # WCAG 2, graphics
    assert min(contrast("#ffffff", color) for color in on_light) >= 3  # analysis.svg
    assert len(set(on_light)) == len(set(on_dark)) == 48


def test_the_weights_layers_have_colours_for_both(handmade: Run) -> None:
    spectra, *others = weight_pictures(analyze_run(handmade.folder))
    ET.fromstring(spectra.svg)
    for light, dark in zip(layer_colors(5), layer_colors(5, ON_DARK), strict=True):
        assert f"stroke: {light}; stroke: light-dark({light}, {dark})" in spectra.svg
        assert spectra.svg.count(f": {light}") == spectra.svg.count(f"light-dark({light}")
    assert not any(re.search("#[0-9a-f]{6}", picture.svg) for picture in others)


def contrast(a: str, b: str) -> float:
    """The contrast ratio of two colours "#rrggbb", by WCAG 2."""
    dark, light = sorted(luminance(color) for color in (a, b))
    return (light + 0.05) / (dark + 0.05)


def luminance(color: str) -> float:
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_what_learning_gains_is_told_part_by_part() -> None:
    plain, adapted = [2.0] * 10, [2.0, *[1.9] * 8, None]
    picture = along_picture(plain, adapted)
    assert picture.alt == "gain of 0.000 bits per byte after a tenth of the text, 0.089 at its end"
    assert picture.svg.startswith("<svg")
