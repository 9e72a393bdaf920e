"""Reading training logs of the challenge: ours, the baseline's and those of published records.

The line formats are those of the OpenAI parameter-golf repository: `step:N/M train_loss:... ` and
`NAME val_loss:... val_bpb:...` of its train_gpt.py, and `N/M train_loss: ...` with a block of
hyperparameters, as records from April 2026 on print them. Lines of `=` cut a log into sections, one
of which may be the script's code; some logs have a Unix time before every line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal

from pargolf.system.errors import UserError

LOSSES: tuple[str, ...] = ("train_loss", "val_loss", "val_bpb", "lr_scale")
LARGEST_LOG = 16_000_000  # bytes; logs may print the code, and every chunk of test-time training
LONGEST_LINE = 2000  # characters; what is longer is no line that a training script prints
SLOWEST = Decimal(1)  # tokens a second of which a time is told: of fewer it could have too many digits
UNITS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "": Decimal("0.001")}  # in seconds

# Short, so that no arithmetic on a number from a stranger's log can overflow.
NUMBER = r"[-+]?\d[\d,]{0,23}(?:\.\d{0,20})?(?:[eE][-+]?\d{1,2})?"
FIELD = re.compile(rf"(?<!\S)([A-Za-z][\w/]*):\s?({NUMBER})(ms|s|m)?(?!\S)")
STEP = re.compile(r"(?:step:\s?)?(\d{1,12})/\d{1,12}\s")
SIZE = re.compile(rf"(Serialized model|Code size|Total submission size)\b([^:]*):\s*({NUMBER}) bytes")
SETTING = re.compile(r"([A-Za-z]\w*):([\w.+-]+)")  # one of several on a line
BLOCK = "Hyperparameters:"  # under it one setting a line, indented
BLOCK_SETTING = re.compile(r"\s+([A-Za-z]\w*): (.*)")
SEED = re.compile(r"(?<!\S)seed[:=]\s?(\d{1,12})(?!\S)|, seed (\d{1,12})$")
PARAMETERS = re.compile(rf": ({NUMBER}) parameters,")  # of our own log
STOP = re.compile(rf"stopping_early: .*train_time:\s?({NUMBER})(ms|s|m)? step:\s?(\d{{1,12}})/")
LAST_READ = re.compile(r"training text last read at (\d{1,9}\.\d) s of training")  # our own; includes it
CALIBRATION = re.compile(r"GPTQ:collected \d{1,6} [Hh]essians in (\d{1,9}(?:\.\d{1,9})?)s")
COUNTS = {
    "val_tokens": re.compile(r"(?:val_tokens:\s?|val_loader:.*\stokens:)(\d{1,12})\b"),
    "documents": re.compile(r"ttt_\w+:.*?\b(?:total_)?docs:(\d{1,12})\b"),
    "train_shards": re.compile(r"(?:.*\s)?train_shards:\s?(\d{1,12})\b"),
}
RULE = "=" * 100  # between the sections
UNIX_TIME = re.compile(r"\d{10}(?:\.\d{1,9})? ")  # before a line
CODE = re.compile(r"import \w|from [\w.]+ import ")  # begins a line in every script, and none of a log

Setting = int | float | bool | str


@dataclass(frozen=True)
class Step:
    """One line of the training: losses, and seconds of training so far where the line states them."""

    step: int
    losses: dict[str, Decimal]
    """Those of LOSSES that are on the line."""
    seconds: Decimal | None
    exact: bool = True
    """False if the seconds are minutes rounded to tenths."""


@dataclass(frozen=True)
class LoggedScore:
    """A named score of the finished model, with as many decimals as the log gives."""

    label: str
    """As the log names it, without "_exact"."""
    val_loss: Decimal
    val_bpb: Decimal
    seconds: Decimal | None
    stride: int | None
    tokens: int | None
    """Scored tokens and the bytes of text they stand for; our own scripts state them."""
    bytes: int | None

    @property
    def of_checkpoint(self) -> bool:
        """Whether it is of weights not yet quantized."""
        return bool(re.search(r"\bpre[-_ ]|\bpost[-_ ](ema|swa)", self.label, re.IGNORECASE))

    @property
    def of_artifact(self) -> bool:
        """False for a diagnostic beside the scores that count."""
        return not self.of_checkpoint and "diagnostic" not in self.label.lower()


@dataclass(frozen=True)
class TrainLog:
    """What a log states; None where it states nothing."""

    seed: int | None
    settings: dict[str, Setting]
    steps: tuple[Step, ...]
    scores: tuple[LoggedScore, ...]
    """In the order of the log; the last of the artifact is the submission's."""
    model_bytes: int | None
    code_bytes: int | None
    """The last that is stated: of the code as the total counts it, which may be compressed."""
    total_bytes: int | None
    train_seconds: Decimal | None
    eval_seconds: Decimal | None
    train_exact: bool = True
    """False if train_seconds are minutes rounded to tenths."""
    stopped_at: int | None = None
    """The step at which the line of the wall-clock cap says that training ended."""
    calibration_seconds: Decimal | None = None
    """Of calibration after the last step."""
    val_tokens: int | None = None
    """Of the validation stream."""
    documents: int | None = None
    """Of validation, where test-time training counts them."""
    train_shards: int | None = None
    code_sizes: tuple[int, ...] = ()
    """All bytes of code that are stated, such as readable and compressed."""

    @property
    def last_step(self) -> int | None:
        """The number of training steps."""
        return self.stopped_at or (self.steps[-1].step if self.steps else None)

    @property
    def final(self) -> LoggedScore | None:
        """The score of the artifact that the log ends with."""
        return next((score for score in reversed(self.scores) if score.of_artifact), None)


def parse_log(text: str) -> TrainLog:
    """Read a training log; lines of unknown form are skipped, and so is the script's code.

    Raises UserError if there is neither a step nor a score in it.
    """
    reader = _Reader()
    for line in _without_code(text):
        reader.read(line)
    if not reader.steps and not reader.scores:
        raise UserError("no line of it reads `step:N/M train_loss:...` or `NAME val_loss:... val_bpb:...`")
    return TrainLog(
        reader.seed,
        reader.settings,
        tuple(reader.exact_steps()),
        tuple(reader.scores.values()),
        reader.sizes.get("Serialized model"),
        reader.sizes.get("Code size"),
        reader.sizes.get("Total submission size"),
        reader.train_seconds,
        reader.eval_seconds,
        reader.train_exact,
        reader.stopped_at,
        reader.calibration_seconds,
        code_sizes=tuple(reader.code_sizes),
        **reader.counts,
    )


def _without_code(text: str) -> Iterator[str]:
    """The lines, without Unix times and without sections that are code; the last section never is."""
    sections: list[list[str]] = [[]]
    for raw in text.splitlines():
        line = UNIX_TIME.sub("", raw, count=1) if UNIX_TIME.match(raw) else raw
        if line == RULE:
            sections.append([])
        elif len(line) <= LONGEST_LINE:
            sections[-1].append(line)
    for section in sections[:-1]:
        if not any(CODE.match(line) for line in section):
            yield from section
            yield RULE
    yield from sections[-1]


class _Reader:
    """Collects what the lines state, one after the other."""

    def __init__(self) -> None:
        self.seed: int | None = None
        self.settings: dict[str, Setting] = {}
        self.steps: list[tuple[Step, Decimal | None]] = []  # and mean tokens a second up to it
        self.scores: dict[str, LoggedScore] = {}
        self.sizes: dict[str, int] = {}
        self.code_sizes: list[int] = []
        self.counts: dict[str, int] = {}
        self.in_block = False
        self.train_seconds: Decimal | None = None
        self.train_exact = True
        self.stopped_at: int | None = None
        self.calibration_seconds: Decimal | None = None
        self.eval_seconds: Decimal | None = None

    def read(self, line: str) -> None:
        fields = {name: (_number(number), unit) for name, number, unit in FIELD.findall(line)}
        if "train_time" in fields:
            self.train_seconds = _seconds(*fields["train_time"])
            self.train_exact = fields["train_time"][1] != "m"
        if step := STEP.match(line):
            self._step(int(step[1]), fields)
        elif "val_loss" in fields and "val_bpb" in fields:
            self._score(line[: line.index("val_loss")].strip(), fields)
        elif size := SIZE.match(line):
            # The compressed size carries a name and comes after the raw one.
            self.sizes[size[1]] = int(_number(size[3]))
            if size[1] == "Code size":
                self.code_sizes.append(self.sizes[size[1]])
        elif "total_eval_time" in fields:
            self.eval_seconds = _seconds(*fields["total_eval_time"])
        elif stop := STOP.match(line):
            self.stopped_at = int(stop[3])
        elif hessians := CALIBRATION.match(line):
            self.calibration_seconds = (self.calibration_seconds or Decimal(0)) + Decimal(hessians[1])
        elif (read := LAST_READ.match(line)) and self.train_seconds is not None:
            self.calibration_seconds = max(Decimal(read[1]) - self.train_seconds, Decimal(0))
        else:
            self._setting(line)

    def exact_steps(self) -> Iterator[Step]:
        """The steps, with the time of a rounded one from tokens a second, or from the line of the cap."""
        batch = self.settings.get("train_batch_tokens")
        for step, speed in self.steps:
            if step.exact:
                yield step
            elif step.step == self.stopped_at and self.train_exact:
                yield replace(step, seconds=self.train_seconds, exact=True)
            elif speed and speed >= SLOWEST and isinstance(batch, int) and 0 < batch < 10**12:
                yield replace(step, seconds=round(step.step * batch / speed, 3), exact=True)
            else:
                yield step

    def _step(self, step: int, fields: dict[str, tuple[Decimal, str]]) -> None:
        losses = {name: fields[name][0] for name in LOSSES if name in fields}
        if losses:
            time, unit = fields.get("train_time", (None, ""))
            seconds = None if time is None else _seconds(time, unit)
            speed = fields["tok/s"][0] if "tok/s" in fields else None
            self.steps.append((Step(step, losses, seconds, unit != "m"), speed))

    def _score(self, label: str, fields: dict[str, tuple[Decimal, str]]) -> None:
        seconds = _seconds(*fields["eval_time"]) if "eval_time" in fields else None
        counts = {
            name: int(fields[name][0]) if name in fields else None for name in ("stride", "tokens", "bytes")
        }
        name = label.removesuffix("_exact")
        score = LoggedScore(name, fields["val_loss"][0], fields["val_bpb"][0], seconds, **counts)
        # "..._exact" repeats the losses of the line before with all their decimals, and nothing else.
        rounded = self.scores.pop(name, None)
        if rounded is not None and label.endswith("_exact"):
            score = replace(rounded, val_loss=score.val_loss, val_bpb=score.val_bpb)
        self.scores[score.label] = score
        if score.seconds is not None and score.of_artifact:
            self.eval_seconds = score.seconds

    def _setting(self, line: str) -> None:
        for name, pattern in COUNTS.items():
            if count := pattern.match(line):
                self.counts[name] = int(count[1])
        if self.steps:
            return
        self.in_block = line == BLOCK or (self.in_block and bool(BLOCK_SETTING.fullmatch(line)))
        words = [SETTING.fullmatch(word) for word in line.split()]
        if self.in_block and (block := BLOCK_SETTING.fullmatch(line)):
            self.settings[block[1]] = _value(block[2])
        elif words and all(words):
            self.settings |= {word[1]: _value(word[2]) for word in words if word}
        if self.seed is None and (seed := SEED.search(line)):
            self.seed = int(seed[1] or seed[2])
        if parameters := PARAMETERS.search(line):
            self.settings["model_params"] = int(_number(parameters[1]))


def _number(text: str) -> Decimal:
    return Decimal(text.replace(",", ""))


def _seconds(number: Decimal, unit: str) -> Decimal:
    return number * UNITS[unit]


def _value(text: str) -> Setting:
    if text in ("True", "False"):
        return text == "True"
    if re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    if re.fullmatch(NUMBER, text) and "," not in text:
        return float(text)
    return text
