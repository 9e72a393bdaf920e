"""pargolf as a library: the numbers of the command line, nothing heavy before it is needed, true examples."""

import dataclasses
import doctest
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
import torch

import pargolf
import pargolf.library
from pargolf.cli import dispatch
from pargolf.config.schema import ExportConfig
from pargolf.data.shards import open_split
from pargolf.data.text import decoded, measured
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import pack, read_artifact
from pargolf.fit.budget import ledger
from pargolf.library import Model
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.score.windows import score
from pargolf.system.errors import UserError
from support import Dataset, shaken

ROOT = Path(__file__).parents[1]
AWKWARD = ["\0", "\n", " ", "漢字 🙂", "\u2581 is no space", "<s></s><0x41>", "\ufffd\ufeff", "e\u0301"]


@pytest.fixture(scope="module")
def model(finished: Path) -> Model:
    return pargolf.load(finished)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "sentencepiece", "rich"}
    code = f"import sys, pargolf; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("stride", [16, 64])
def test_the_held_out_document_costs_what_the_run_s_result_says(
    model: Model, finished: Path, dataset: Dataset, stride: int
) -> None:
    stream = open_split(dataset.folder, "val")
    tokens = stream.read(0, len(stream))
    text = decoded(tokens, model.tokenizer).decode()
    assert model.encode(text).tolist() == tokens.tolist()  # one document, BOS first
    result = json.loads((finished / "result.json").read_text())
    how = {result["stride"]: "sliding", result["seq_len"]: "standard"}[stride]
    assert model.bits_per_byte(text, stride) == result["artifact"][how]["val_bpb"]


@pytest.mark.parametrize("text", [*AWKWARD, "The city " * 60])
def test_any_text_is_scored_as_pargolf_score_does(model: Model, text: str) -> None:
    tokens = model.encode(text)
    expected = score(model.gpt, measured(tokens, model.tokenizer), 32, 4)
    assert expected.bytes == len(text.encode())
    assert model.bits_per_byte(text, stride=32) == pytest.approx(expected.val_bpb, rel=1e-6)
    found = model.logprobs(text, stride=32)
    assert [token.id for token in found] == tokens[1:].tolist()
    bits = -math.fsum(token.logprob for token in found) / math.log(2)
    assert bits / len(text.encode()) == pytest.approx(model.bits_per_byte(text, stride=32), rel=1e-9)


def test_logprobs_are_those_of_the_whole_distribution(model: Model) -> None:
    text = "Anarchism is a 漢."
    tokens = torch.from_numpy(model.encode(text))
    with torch.no_grad():
        every = model.gpt.head(model.gpt.trunk(tokens[None, :-1])).log_softmax(-1)[0]
    found = model.logprobs(text)
    expected = every[torch.arange(len(found)), tokens[1:]]
    assert [token.logprob for token in found] == pytest.approx(expected.tolist(), rel=1e-5)
    pieces = [token.piece for token in found]
    assert pieces[-4:-1] == [f"<0x{byte:02X}>" for byte in "漢".encode()]
    assert "".join(pieces[:-4]).replace("▁", " ") == "Anarchism is a "
    assert model.logprobs("") == []


def test_generate_is_what_sample_prints(
    model: Model, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tokens", "20", "--temperature", "1.1", "--top-k", "9", "--seed", "3"]
    assert dispatch(["sample", str(finished), "The city", *arguments]) == 0
    text = model.generate("The city", tokens=20, temperature=1.1, top_k=9, seed=3)
    assert capsys.readouterr().out == text + "\n"
    assert model.generate("The city", tokens=0) == "The city"


def test_the_ledger_and_the_weights_need_no_model(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pargolf.library, "load_model", None)
    fresh = pargolf.load(finished)
    data = (finished / "model.pgz").read_bytes()
    assert fresh.ledger() == ledger(data, 0)
    assert fresh.ledger(500).total == len(data) + 500
    assert fresh.state_dict().keys() == read_artifact(finished / "model.pgz").state.keys()


def test_the_weights_are_copies_and_those_that_score(model: Model) -> None:
    weights = model.state_dict()
    for name, weight in model.gpt.state_dict().items():
        assert torch.equal(weights[name], weight.cpu())
    weights["embed.weight"].zero_()
    assert model.state_dict()["embed.weight"].any()


def test_an_artifact_is_found_with_its_tokenizer_or_without(
    model: Model, finished: Path, dataset: Dataset, tmp_path: Path
) -> None:
    alone = tmp_path / "small.pgz"
    shutil.copyfile(finished / "model.pgz", alone)
    with pytest.raises(UserError, match="name its tokenizer with"):
        pargolf.load(alone)
    expected = model.bits_per_byte("The city.")
    assert pargolf.load(str(alone), tokenizer=str(dataset.tokenizer)).bits_per_byte("The city.") == expected
    shutil.copyfile(dataset.tokenizer, tmp_path / "tokenizer.model")
    assert pargolf.load(alone).bits_per_byte("The city.") == expected
    with pytest.raises(UserError, match="does not exist"):
        pargolf.load(tmp_path / "none.pgz")
    alone.write_bytes(alone.read_bytes()[:-1])
    with pytest.raises(UserError, match="copy it again"):
        pargolf.load(alone)


def packed(folder: Path, model: GPT, tokenizer: str) -> Path:
    """An artifact of `model` that claims to belong to the tokenizer of this SHA-256."""
    slots, export = tensor_kinds(model), ExportConfig(level=3)
    data = pack(dict(model.state_dict()), slots, model.config, export, tokenizer)
    path = folder / "model.pgz"
    path.write_bytes(data)
    return path


def test_a_vocabulary_of_another_size_is_refused(model: Model, dataset: Dataset, tmp_path: Path) -> None:
    small = shaken(dataclasses.replace(model.config, vocab_size=400))
    path = packed(tmp_path, small, model.tokenizer.sha256)
    with pytest.raises(UserError, match="has a vocabulary of 400, but its tokenizer 512 pieces"):
        pargolf.load(path, dataset.tokenizer)


def test_a_tokenizer_that_drops_spaces_scores_the_text_that_is_left(model: Model, tmp_path: Path) -> None:
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the city was old and the river was wide"] * 9), model_writer=file,
        model_type="bpe", vocab_size=300, byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    path = tmp_path / "dropping.model"
    path.write_bytes(file.getvalue())
    sha256 = Tokenizer(path).sha256
    other = pargolf.load(
        packed(tmp_path, shaken(dataclasses.replace(model.config, vocab_size=300)), sha256), path
    )
    bits = -sum(token.logprob for token in other.logprobs("  the   city ")) / math.log(2)
    assert bits / len("the city") == pytest.approx(other.bits_per_byte("  the   city "))
    with pytest.raises(UserError, match="no byte to score"):
        other.bits_per_byte("  ")


def test_what_is_no_text_or_no_setting_is_refused(model: Model) -> None:
    with pytest.raises(UserError, match="the text is empty"):
        model.bits_per_byte("")
    for call in (model.bits_per_byte, model.logprobs, model.generate, model.encode):
        with pytest.raises(TypeError, match="must be a str, is bytes"):
            call(b"The city")  # type: ignore[arg-type]
        with pytest.raises(UserError, match="lone surrogate"):
            call("a\ud800")
    for stride in (0, 65):
        with pytest.raises(UserError, match=f"stride {stride} must lie in 1..64"):
            model.bits_per_byte("The city", stride)
        with pytest.raises(UserError, match=f"stride {stride} must lie in 1..64"):
            model.logprobs("The city", stride)
    with pytest.raises(UserError, match="must not be negative"):
        model.generate("The city", tokens=-1)


def test_the_examples_run_and_are_true(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/demo").symlink_to(finished)
    monkeypatch.chdir(tmp_path)
    shared = {"pargolf": pargolf, "math": math, "model": pargolf.load("runs/demo")}
    tried = [
        doctest.testmod(pargolf),
        doctest.testmod(pargolf.library, extraglobs=shared),
        doctest.testfile(str(ROOT / "docs/library.md"), module_relative=False),
    ]
    assert [result.failed for result in tried] == [0, 0, 0]
    assert all(result.attempted > 1 for result in tried)
