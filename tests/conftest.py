"""Real text as a small dataset, made once for all tests by the command line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before PyTorch is imported, here and in the processes that tests start: threads that wait for
# each other cost a tiny model more than they give.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # whatever a test loads is in a folder

import torch

from pargolf.cli import dispatch
from pargolf.config.schema import ModelConfig
from pargolf.data.corpus import embedded_documents
from pargolf.run.folder import Run
from submission_support import write_good
from support import Dataset, pargolf, shaken, write_run
from tokenizer_support import CaseOps, make_case_ops


@pytest.fixture(scope="session")
def articles() -> list[str]:
    """Twelve real articles, the first 6,000 characters of each."""
    return [document[:6000] for document in embedded_documents()[:12]]


@pytest.fixture(scope="session")
def dataset(articles: list[str], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("dataset")
    source = root / "articles.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in articles))
    done = pargolf("data", "--text", source, "--vocab-size", 512, "--root", root / "data")
    assert done.returncode == 0, done.stderr
    return Dataset(
        root / "data/datasets/articles_sp512", root / "data/tokenizers/articles_512_bpe.model", articles
    )


@pytest.fixture(scope="session")
def finished(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, trained, packed and scored by `pargolf run`; to be read, not written."""
    runs = tmp_path_factory.mktemp("runs")
    options = dataset.options(eval__stride=16, train__val_every=10)
    done = pargolf("run", "demo", "--runs", runs, "--name", "tiny", *options)
    assert done.returncode == 0, done.stderr
    (runs / "tiny" / "stdout").write_text(done.stdout)
    return runs / "tiny"


@pytest.fixture(scope="session")
def page_of_finished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its report, written by `pargolf report`."""
    page = tmp_path_factory.mktemp("report") / "page.html"
    assert dispatch(["report", str(finished), "--out", str(page)]) == 0
    return page


@pytest.fixture(scope="session")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A place for transformers to copy the code of loaded folders to; its own is in the user's home."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture
def case_ops(tmp_path: Path) -> CaseOps:
    """Tokens of a text with operators for capitals, and the bytes they stand for."""
    return make_case_ops(tmp_path)


@pytest.fixture
def handmade(tmp_path: Path) -> Run:
    """A run folder without training; its mixes, skip weights and gains are set by hand."""
    model = shaken(
        ModelConfig(vocab_size=40, seq_len=8, n_layers=5, d_model=16, n_heads=4, kv_heads=2, q_rank=5)
    )
    with torch.no_grad():
        for layer, block in enumerate(model.blocks):
            assert block.resid_mix is not None
            block.resid_mix[0] = layer
            block.resid_mix[1] = torch.tensor([-1.0] * 4 + [3.0] * 12)
            block.attn.q_gain.copy_(torch.tensor([1.0, -2.0, 4.0, 3.0]))
        assert model.skip_weights is not None
        model.skip_weights.copy_(torch.tensor([[0.5], [-0.25]]).expand(2, 16))
    return write_run(tmp_path / "handmade", model)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A submission's folder that breaks no rule."""
    write_good(tmp_path / "submission")
    return tmp_path / "submission"
