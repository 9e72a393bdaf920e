"""Every condition holds for our own models, and each way to cheat breaks the condition it should."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pargolf.cli import dispatch
from pargolf.config.schema import ExportConfig, ModelConfig
from pargolf.data.shards import open_split
from pargolf.data.text import Text, measured
from pargolf.data.tokenizer import Tokenizer
from pargolf.export.artifact import pack
from pargolf.model.gpt import GPT, tensor_kinds
from pargolf.system.errors import UserError
from pargolf.verify import verify as module
from pargolf.verify.conditions import Condition, Verdict
from pargolf.verify.model_under_test import ScoredGPT
from pargolf.verify.verify import choose_trials, verify
from support import Dataset, pargolf, shaken
from tokenizer_support import CaseOps

TINY = ModelConfig(vocab_size=512, seq_len=32, n_layers=3, d_model=16, n_heads=2, kv_heads=1, q_rank=4)
CONDITIONS = ["determinism", "normalization", "causality", "one pass", "accounting"]


@pytest.fixture(scope="module")
def tokenizer(dataset: Dataset) -> Tokenizer:
    return Tokenizer(dataset.tokenizer)


@pytest.fixture(scope="module")
def text(dataset: Dataset, tokenizer: Tokenizer) -> Text:
    """The validation text twice, so that a document starts inside the stream."""
    stream = open_split(dataset.folder, "val")
    return measured(stream.read(0, 2 * len(stream)), tokenizer)


@pytest.fixture(scope="module")
def artifact(dataset: Dataset, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model of random weights, in no run folder."""
    model = shaken(TINY)
    path = tmp_path_factory.mktemp("artifact") / "model.pgz"
    path.write_bytes(
        pack(dict(model.state_dict()), tensor_kinds(model), TINY, ExportConfig(level=3), tokenizer.sha256)
    )
    return path


def broken(verdict: Verdict) -> set[str]:
    return {row.condition for row in verdict.rows if row.holds is False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        TINY,
        ModelConfig(vocab_size=512, seq_len=50, n_layers=4, d_model=24, n_heads=4, kv_heads=2, q_rank=0),
        ModelConfig(vocab_size=512, seq_len=7, n_layers=2, d_model=16, n_heads=1, kv_heads=1, q_rank=16),
    ],
)
def test_our_models_hold_bit_for_bit(config: ModelConfig, dtype: torch.dtype, text: Text) -> None:
    gpt = GPT(config, dtype)
    gpt.load_state_dict(shaken(config).state_dict())
    verdict = verify(lambda: ScoredGPT(gpt, stride=5), text, stride=5, positions=16)
    assert verdict.valid
    assert [row.condition for row in verdict.rows] == CONDITIONS
    determinism, normalization, causality, one_pass, accounting = verdict.rows
    assert determinism.deviation == causality.deviation == one_pass.deviation == accounting.deviation == 0
    assert normalization.deviation is not None
    assert 0 < normalization.deviation < 1e-5
    assert determinism.tried == normalization.tried == one_pass.tried == 16 * config.seq_len
    assert 16 <= causality.tried < 16 * config.seq_len
    assert accounting.tried == len(text) - 1


class Honest:
    """A model of random weights; the cheats below change what it answers."""

    def __init__(self) -> None:
        self.gpt = shaken(TINY)
        self.seq_len = TINY.seq_len

    def logprobs(self, rows: Tensor) -> Tensor:
        return self.gpt.head(self.gpt.trunk(rows)).log_softmax(-1)


def raised(logprobs: Tensor, tokens: Tensor, nats: float = 3.0) -> Tensor:
    """logprobs (B, T, vocab) with tokens (B, T) made likelier, normalized again."""
    return (logprobs + nats * torch.nn.functional.one_hot(tokens, TINY.vocab_size)).log_softmax(-1)


class PeeksAhead(Honest):
    def logprobs(self, rows: Tensor) -> Tensor:
        return raised(super().logprobs(rows), rows.roll(-1, 1))


class PeeksALittle(Honest):
    def logprobs(self, rows: Tensor) -> Tensor:
        return raised(super().logprobs(rows), rows.roll(-1, 1), nats=1e-3)


class PeeksAtTheLastToken(Honest):
    def logprobs(self, rows: Tensor) -> Tensor:
        return raised(super().logprobs(rows), rows[:, -1:].expand_as(rows))


class PeeksAfterBOS(Honest):
    def logprobs(self, rows: Tensor) -> Tensor:
        return raised(super().logprobs(rows), torch.where(rows == 1, rows.roll(-1, 1), rows))


class PeeksAtOtherWindows(Honest):
    def logprobs(self, rows: Tensor) -> Tensor:
        return raised(super().logprobs(rows), rows.roll(-1, 0))


class NormalizesOverTheBatch(Honest):
    def logprobs(self, rows: Tensor) -> Tensor:
        logits = self.gpt.head(self.gpt.trunk(rows))
        return (logits / logits.std()).log_softmax(-1)


class LearnsBeforeScoring(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.counts = torch.ones(TINY.vocab_size)

    def logprobs(self, rows: Tensor) -> Tensor:
        self.counts += rows.flatten().bincount(minlength=TINY.vocab_size)
        return (super().logprobs(rows) + self.counts.log()).log_softmax(-1)


class LearnsForTheNextPass(LearnsBeforeScoring):
    """What it answers comes from before the call; scored a second time, it knows the text."""

    def logprobs(self, rows: Tensor) -> Tensor:
        before = self.counts.clone()
        super().logprobs(rows)
        return (Honest.logprobs(self, rows) + before.log()).log_softmax(-1)


class OverTheTop(Honest):
    def logprobs(self, rows: Tensor) -> Tensor:
        return super().logprobs(rows) + 1e-4


class CertainOfAnything(Honest):
    """Probability 1 for whichever token is asked for: a hashed cache that was never normalized."""

    def logprobs(self, rows: Tensor) -> Tensor:
        return torch.zeros(*rows.shape, TINY.vocab_size)


class NotANumber(Honest):
    def logprobs(self, rows: Tensor) -> Tensor:
        return super().logprobs(rows) * torch.nan


class Rolls(Honest):
    def logprobs(self, rows: Tensor) -> Tensor:
        noisy = super().logprobs(rows)
        return (noisy + 0.01 * torch.rand_like(noisy)).log_softmax(-1)


class NotAllInTheArtifact(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.bias = torch.from_numpy(np.random.default_rng().random(TINY.vocab_size, np.float32))

    def logprobs(self, rows: Tensor) -> Tensor:
        return (super().logprobs(rows) + self.bias).log_softmax(-1)


@pytest.mark.parametrize(
    ("cheat", "condition"),
    [
        (PeeksAhead, "causality"),
        (PeeksALittle, "causality"),
        (PeeksAtTheLastToken, "causality"),
        (PeeksAfterBOS, "causality"),
        (PeeksAtOtherWindows, "causality"),
        (NormalizesOverTheBatch, "causality"),
        (LearnsForTheNextPass, "one pass"),
        (OverTheTop, "normalization"),
        (CertainOfAnything, "normalization"),
        (NotANumber, "normalization"),
        (Rolls, "determinism"),
        (NotAllInTheArtifact, "determinism"),
    ],
)
def test_a_cheat_breaks_its_condition_alone(cheat: type[Honest], condition: str, text: Text) -> None:
    verdict = verify(cheat, text, stride=8, positions=48)
    assert not verdict.valid
    assert broken(verdict) == {condition}
    unknown = {row.condition for row in verdict.rows if row.holds is None}
    assert unknown == ({"causality", "one pass"} if condition == "determinism" else set())


def test_learning_before_scoring_breaks_two_conditions(text: Text) -> None:
    assert broken(verify(LearnsBeforeScoring, text, 8)) == {"causality", "one pass"}


def test_wrong_bytes_are_caught(dataset: Dataset, tokenizer: Tokenizer, text: Text) -> None:
    table = tokenizer.byte_table()
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(dataset.tokenizer))
    is_byte = np.array([pieces.is_byte(token) for token in range(tokenizer.vocab_size)])
    assert is_byte[text.tokens].any()

    class ReplacementCharacters(Honest):
        def token_bytes(self, previous: np.ndarray, targets: np.ndarray) -> np.ndarray:
            return np.where(is_byte[targets], 3, table.count(previous, targets))

    verdict = verify(ReplacementCharacters, text, 8, positions=4)
    assert broken(verdict) == {"accounting"}
    assert verdict.rows[-1].deviation == 2 * is_byte[text.tokens].sum()


def prefixed(tmp_path: Path) -> Tokenizer:
    """As the challenge's: a space is put before each text, and vanishes when it is decoded."""
    model = tmp_path / "prefixed.model"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox"] * 99), model_prefix=str(model.with_suffix("")),
        vocab_size=300, byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return Tokenizer(model)


@pytest.mark.parametrize("stripping", [False, True])
@pytest.mark.parametrize("kind", ["inside a document", "inside a character", "EOS between"])
def test_whatever_a_stream_begins_ends_and_is_cut_with_is_counted(
    kind: str, stripping: bool, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    own = prefixed(tmp_path) if stripping else tokenizer
    one, two = (own.encode(words) for words in ("the quick \N{SNOWMAN}", "brown fox \N{SNOWMAN}"))
    ids = {
        "inside a document": [*one[1:], own.bos_id, *two],
        "inside a character": [own.bos_id, *one, own.bos_id, *two[:-1]],
        "EOS between": [*one, 2, *two, 2],
    }[kind]
    stream = measured(np.array(ids), own)
    c = replace(TINY, vocab_size=own.vocab_size)
    verdict = verify(lambda: ScoredGPT(GPT(c, seed=0), 8), stream, 8, positions=4)
    assert verdict.valid, verdict.rows[-1].measured
    if kind == "inside a character":
        assert stream.bytes == len("the quick \N{SNOWMAN}brown fox \N{SNOWMAN}".encode()) - 1


def test_the_bytes_of_a_sidecar_are_held_against_the_text_without_its_operators(case_ops: CaseOps) -> None:
    own, ids, sizes = case_ops
    c = replace(TINY, vocab_size=own.vocab_size)

    def accounting(sidecar: np.ndarray) -> Condition:
        text = measured(ids, own, sidecar)
        return verify(lambda: ScoredGPT(GPT(c, seed=0), 8), text, 8, positions=4).rows[-1]

    assert accounting(sizes).holds
    assert not accounting(np.where(ids == ids[-1], 0, sizes)).holds


def test_a_tail_scored_twice_is_caught(text: Text, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = module.windows(len(text) - 1, 32, 8)
    monkeypatch.setattr(module, "windows", lambda *sizes: [*plan, plan[-1]])
    verdict = verify(Honest, text, 8, positions=4)
    assert broken(verdict) == {"accounting"}
    assert "1 to 2 times" in verdict.rows[-1].measured


def test_the_plan_that_is_proved_is_the_one_that_scores(text: Text) -> None:
    for apart, plan in (
        (False, module.windows(len(text) - 1, 32, 8)),
        (True, module.document_windows(text, 32, 8)),
    ):
        accounting = verify(Honest, text, 8, positions=4, apart=apart).rows[-1]
        assert accounting.holds and f"once each by {len(plan):,} windows" in accounting.measured


def test_a_part_of_the_vocabulary_is_refused(text: Text) -> None:
    class OnlyTheTarget(Honest):
        def logprobs(self, rows: Tensor) -> Tensor:
            return super().logprobs(rows)[..., :1]

    with pytest.raises(UserError, match="whole vocabulary"):
        verify(OnlyTheTarget, text, 8)


@given(data=st.data(), length=st.integers(3, 90), seq_len=st.integers(2, 40), count=st.integers(1, 20))
def test_trials_keep_the_past_and_change_all_the_future(
    data: st.DataObject, length: int, seq_len: int, count: int, tokenizer: Tokenizer
) -> None:
    tokens = np.array(data.draw(st.lists(st.integers(0, 511), min_size=length, max_size=length)), np.uint16)
    trials = choose_trials(Text(tokens, tokens, tokenizer), seq_len, count, seed=data.draw(st.integers(0, 9)))
    width = min(seq_len, length - 1)
    assert trials.rows.shape == (count, width + 1)
    spans = np.lib.stride_tricks.sliding_window_view(tokens.astype(np.int64), width + 1)
    for row, cut, changed in zip(trials.rows, trials.cuts, trials.changed, strict=True):
        assert (spans == row.numpy()).all(axis=1).any()
        assert 1 <= cut < width
        assert torch.equal(changed[:cut], row[:cut])
        assert (changed[cut:] != row[cut:-1]).all()
        assert 0 <= int(changed.min()) <= int(changed.max()) < 512


def test_trials_stand_at_borders(tokenizer: Tokenizer, text: Text) -> None:
    trials = choose_trials(text, 32, 30, seed=0)
    at_start = at_edge = 0
    for row, cut in zip(trials.rows, trials.cuts, strict=True):
        at_start += bool((row[cut - 1 : cut + 1] == tokenizer.bos_id).any())
        at_edge += int(cut) in (1, 31)
    assert at_start >= 10
    assert at_edge >= 10


def arguments(artifact: Path, dataset: Dataset, *more: object) -> list[str]:
    given = ["verify", artifact, "--tokenizer", dataset.tokenizer, "--dataset", dataset.folder]
    return [str(a) for a in [*given, "--stride", 8, "--positions", 12, *more]]


def test_command_prints_a_line_a_condition(artifact: Path, dataset: Dataset, tmp_path: Path) -> None:
    done = pargolf(*arguments(artifact, dataset, "--json", tmp_path / "verdict.json"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 5
    assert all(line.startswith(name) for line, name in zip(lines, CONDITIONS, strict=True))
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["valid"]
    assert [row["condition"] for row in verdict["rows"]] == CONDITIONS
    for row, line in zip(verdict["rows"], lines, strict=True):
        assert row["holds"]
        assert line.endswith(row["measured"])


OWN_MODULE = """
import torch
from pargolf.export.artifact import read_artifact
from pargolf.run.target import load_model

class Mine:
    def __init__(self, path):
        self.gpt = load_model(read_artifact(path))
        self.seq_len = self.gpt.config.seq_len

    def logprobs(self, rows):
        logits = self.gpt.head(self.gpt.trunk(rows))
        {change}
        return logits.log_softmax(-1)

def load(artifact_path):
    return Mine(artifact_path)
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    def write(text: str) -> Path:
        file = tmp_path / "mine.py"
        file.write_text(text)
        return file

    yield write


def test_a_module_of_one_s_own(
    artifact: Path, dataset: Dataset, own: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    honest = own(OWN_MODULE.format(change="logits = logits * 0.9"))
    assert dispatch(arguments(artifact, dataset, "--module", honest)) == 0
    assert capsys.readouterr().out.count("holds") == 5
    peeking = own(OWN_MODULE.format(change="logits = logits + logits.mean(1, keepdim=True)"))
    json_file = peeking.with_suffix(".json")
    assert dispatch(arguments(artifact, dataset, "--module", peeking, "--json", json_file)) == 2
    out, error = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines() if "BROKEN" in line] == ["causality"]
    assert error == f"pargolf: error: the score of {artifact} is not valid: causality\n"
    assert not json.loads(json_file.read_text())["valid"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def lode(path): ...", "no function load(artifact_path)"),
        ("def load(path): return 3", "lacks seq_len or logprobs"),
        ("def load(path):\n    return 1 / 0", "mine.py, line 2: ZeroDivisionError: division by zero"),
        ("import nowhere_to_be_found", "mine.py, line 1: ModuleNotFoundError"),
        ("def load(path:", "mine.py: SyntaxError"),
    ],
)
def test_a_faulty_module_is_one_clear_line(
    text: str, message: str, artifact: Path, dataset: Dataset, own: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file = own(text)
    monkeypatch.chdir(file.parent)
    for named in (file, file.name):
        assert dispatch(arguments(artifact, dataset, "--module", named)) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--module", "nowhere.py"], "is no Python file"),
        (["--positions", "0"], "positions must be at least 1, is 0"),
        (["--stride", "33"], "must lie in 1..32"),
    ],
)
def test_mistakes_are_one_clear_line(
    more: list[str], message: str, artifact: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(arguments(artifact, dataset, *more)) == 2
    assert message in capsys.readouterr().err


def test_verify_needs_a_dataset(artifact: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["verify", str(artifact), "--tokenizer", str(dataset.tokenizer)]) == 2
    assert "name its shards" in capsys.readouterr().err
