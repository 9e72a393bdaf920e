"""The plots draw the figures of the analysis, and come out as SVG."""

import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from pargolf.analysis import plots
from pargolf.analysis.weights import analyze_run
from pargolf.config.schema import ModelConfig
from pargolf.model.gpt import GPT
from pargolf.run.folder import Run
from support import write_run


def test_plots_show_the_figures(handmade: Run) -> None:
    analysis = analyze_run(handmade.folder)
    spectra, ranks = plots.spectra_figure(analysis).subfigs
    panels = {ax.get_title().split(",")[0]: ax for ax in spectra.axes if ax.get_title()}
    assert list(panels) == ["embed", "q", "k", "v", "out", "fc", "proj"]
    q = [m for m in analysis.of_source("checkpoint") if m.name.endswith("attn.q")]
    for line, m in zip(panels["q"].lines, q, strict=True):
        np.testing.assert_allclose(_ydata(line), np.divide(m.singular_values, m.singular_values[0]))
    assert _ydata(ranks.axes[0].lines[0]) == [m.entropy_rank for m in q]
    assert _ydata(ranks.axes[1].lines[0]) == [m.needed_rank for m in q]
    (mixes,) = plots.mixes_figure(analysis).subfigs
    assert _ydata(mixes.axes[0].lines[0]) == [0, 1, 2, 3, 4]
    (errors,) = plots.quantization_figure(analysis).subfigs
    heights = [bar.get_bbox().height for bar in errors.axes[0].patches if isinstance(bar, Rectangle)]
    assert heights == [row.relative_rms for row in analysis.quantization]


def _ydata(line: Line2D) -> list[float]:
    return np.asarray(line.get_ydata(), dtype=float).tolist()


def test_the_svg_file_is_whole_and_its_text_is_text(handmade: Run) -> None:
    plots.save_overview(handmade.folder, analyze_run(handmade.folder))
    root = ElementTree.parse(handmade.analysis_plot).getroot()
    texts = {element.text for element in root.iter() if element.tag.endswith("}text")}
    assert {"q, 16×16", "effective rank (entropy)", "q_gain of each head, and mean", "bits a value"} <= texts


def test_a_matrix_of_zeros_draws_no_warning(tmp_path: Path) -> None:
    c = ModelConfig(vocab_size=8, seq_len=8, n_layers=2, d_model=8, n_heads=2, kv_heads=1, q_rank=0)
    run = write_run(tmp_path, GPT(c, seed=1))  # output projections start at zero
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.save_overview(run.folder, analyze_run(run.folder))
