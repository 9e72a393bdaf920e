"""Real text as a small dataset, made once for all tests by the command line."""

import json
import os
from pathlib import Path

import pytest

# Before PyTorch is imported, here and in the processes that tests start: threads that wait for
# each other cost a tiny model more than they give.
os.environ["OMP_NUM_THREADS"] = "1"

from pargolf.cli import dispatch
from pargolf.data.corpus import embedded_documents
from support import Dataset, pargolf


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
def tiny_run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny run, trained, packed and scored; copy it to change anything."""
    runs = tmp_path_factory.mktemp("runs")
    options = dataset.options(eval__stride=32, train__val_every=10)
    assert dispatch(["run", "demo", "--runs", str(runs), "--name", "tiny", *options]) == 0
    return runs / "tiny"
