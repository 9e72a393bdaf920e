"""Logs of three generations of scripts, and our own, line by line."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pargolf.config.schema import TrainConfig
from pargolf.run.logs import RULE, parse_log
from pargolf.system.errors import UserError
from pargolf.train.loop import step_line

# The code of the script comes first, with lines that look like figures of a run.
BASELINE = f"""\
seed: int = 5
    num_layers: 77
log0(f"final_int8_zlib_roundtrip val_loss:{{q_val_loss:.4f}} val_bpb:{{q_val_bpb:.4f}}")
{RULE}
Running PyTorch 2.9.1
[rank0]:[W318 14:38:18] Warning: seed 3 of something
logs/a.txt
val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=data/tokenizers/fineweb_1024_bpe.model
model_params:17059912
attention_mode:gqa num_heads:8 num_kv_heads:4
tie_embeddings:True embed_lr:0.05 head_lr:0.0 matrix_lr:0.04 scalar_lr:0.04
seed:1337
warmup_step:20/20
step:0/20000 val_loss:6.9370 val_bpb:4.0978 train_time:0ms step_avg:0.01ms
step:1/20000 train_loss:6.9408 train_time:24ms step_avg:23.99ms
late_qat:enabled step:4255 scale:0.4998
step:13780/20000 val_loss:2.0606 val_bpb:1.2172 train_time:600038ms step_avg:43.54ms
stopping_early: wallclock_cap train_time:600039ms step:13780/20000
DIAGNOSTIC post_swa val_loss:1.9344 val_bpb:1.1457 eval_time:2255ms
Serialized model: 67224983 bytes
Code size: 47642 bytes
Total submission size: 67272625 bytes
Serialized model int8+zlib: 15815847 bytes (payload:17178912 raw_torch:17224025 payload_ratio:3.91x)
Total submission size int8+zlib: 15863489 bytes
final_int8_zlib_roundtrip val_loss:2.0727 val_bpb:1.2244 eval_time:1401ms
final_int8_zlib_roundtrip_exact val_loss:2.07269931 val_bpb:1.22436570
final_sliding val_loss:2.0327 val_bpb:1.2044 stride:64 eval_time:73000ms
"""

LATE = """\
Hyperparameters:
  adam_eps: 1e-08
  artifact_dir: 
  logfile: logs/x.txt
  seed: 314
  tie_embeddings: True
  vocab_size: 8192
train_shards: 1499
model_params:35945671
warmup_step: 20/20
0/20000 val_loss: 8.9980 val_bpb: 4.1115
500/20000 train_loss: 2.7356 train_time: 0.8m tok/s: 8350726
4991/20000 val_loss: 2.3555 val_bpb: 1.0763
stopping_early: wallclock_cap train_time: 599619ms step: 4991/20000
diagnostic pre-quantization post-ema val_loss:2.33219450 val_bpb:1.06565268 eval_time:7371ms
Serialized model: 135417533 bytes
Code size (uncompressed): 162123 bytes
Code size (compressed): 32455 bytes
  gptq (int6): blocks.attn.c_k.weight
Serialized model quantized+brotli: 15918343 bytes
Total submission size quantized+brotli: 15950798 bytes
ttp: b1/782 bl:2.8249 bb:1.1759 rl:2.3293 rb:1.0614 dl:27-83 gd:1
quantized_ttt_phased val_loss:2.32363231 val_bpb:1.06180929 eval_time:532641ms
total_eval_time:532.7s
"""


def test_the_baseline_s_log() -> None:
    log = parse_log(BASELINE)
    assert log.seed == 1337
    assert log.settings == {
        "model_params": 17059912, "attention_mode": "gqa", "num_heads": 8, "num_kv_heads": 4,
        "tie_embeddings": True, "embed_lr": 0.05, "head_lr": 0.0, "matrix_lr": 0.04, "scalar_lr": 0.04,
        "seed": 1337,
    }  # fmt: skip
    assert [s.step for s in log.steps] == [0, 1, 13780]
    assert log.steps[1].losses == {"train_loss": Decimal("6.9408")}
    assert log.steps[1].seconds == Decimal("0.024")
    assert [(s.label, s.of_artifact) for s in log.scores] == [
        ("DIAGNOSTIC post_swa", False), ("final_int8_zlib_roundtrip", True), ("final_sliding", True)
    ]  # fmt: skip
    exact = log.scores[1]
    assert (str(exact.val_loss), str(exact.val_bpb)) == ("2.07269931", "1.22436570")
    assert exact.seconds == Decimal("1.401")
    assert log.final is not None and log.final.stride == 64
    assert (log.model_bytes, log.code_bytes, log.total_bytes) == (15815847, 47642, 15863489)
    assert (log.train_seconds, log.eval_seconds) == (Decimal("600.039"), Decimal(73))


def test_a_late_log() -> None:
    log = parse_log(LATE)
    assert log.seed == 314
    assert log.settings["adam_eps"] == 1e-08
    assert log.settings["vocab_size"] == 8192
    assert log.settings["artifact_dir"] == ""
    assert [step.step for step in log.steps] == [0, 500, 4991]
    assert log.steps[1].seconds == Decimal(48)
    assert log.steps[2].losses == {"val_loss": Decimal("2.3555"), "val_bpb": Decimal("1.0763")}
    assert log.final is not None and log.final.label == "quantized_ttt_phased"
    assert (log.model_bytes, log.code_bytes, log.total_bytes) == (15918343, 32455, 15950798)
    assert (log.train_seconds, log.eval_seconds) == (Decimal("599.619"), Decimal("532.7"))


SECTIONS = f"""\
{RULE}
Hyperparameters:
  seed: 7
  vocab_size: 8192
  train_seq_len: 2048
{RULE}
import torch
    seed: 3
step:9/10 train_loss:9.0000
{RULE}
Running PyTorch 2.9.1
{RULE}
train_shards: 80
val_tokens: 40540160
500/20000 train_loss: 3.3000 train_time: 1.0m tok/s: 8597246
1000/20000 train_loss: 3.2000 train_time: 2.0m tok/s: 8597246
1500/20000 train_loss: 3.2000 train_time: 3.1m tok/s: 8597246
1502/20000 val_loss: 2.7800 val_bpb: 1.0762
stopping_early: wallclock_cap train_time: 183244ms step: 1502/20000
pre-quantization post-ema val_loss:2.77999363 val_bpb:1.07618748 eval_time:7628ms
Code size (uncompressed): 122556 bytes
Code size (compressed): 26760 bytes
GPTQ:collected 67 Hessians in 12.4s
Serialized model quantized+brotli: 15965480 bytes
Total submission size quantized+brotli: 15992240 bytes
quantized val_loss:2.80000000 val_bpb:1.08390000 eval_time:100ms
ttt_lora:docs:50000 rank:96
quantized_ttt val_loss:2.77000000 val_bpb:1.07230000 eval_time:300000ms
"""


@pytest.mark.parametrize("before", ["", "1776143444.368 ", "1776143444 "])
def test_sections_and_unix_times_change_nothing(before: str) -> None:
    log = parse_log("".join(before + line + "\n" for line in SECTIONS.splitlines()))
    assert (log.seed, log.settings) == (7, {"seed": 7, "vocab_size": 8192, "train_seq_len": 2048})
    assert [step.step for step in log.steps] == [500, 1000, 1500, 1502]
    assert (log.last_step, log.train_seconds, log.train_exact) == (1502, Decimal("183.244"), True)
    assert (log.model_bytes, log.code_bytes, log.total_bytes) == (15965480, 26760, 15992240)
    assert (log.train_shards, log.val_tokens, log.documents) == (80, 40540160, 50000)
    assert log.calibration_seconds == Decimal("12.4")
    assert [(score.label, str(score.val_bpb)) for score in log.scores] == [
        ("pre-quantization post-ema", "1.07618748"), ("quantized", "1.08390000"),
        ("quantized_ttt", "1.07230000"),
    ]  # fmt: skip
    assert log.final is not None and log.final.label == "quantized_ttt"


def test_minutes_rounded_to_tenths_are_no_exact_times() -> None:
    assert [step.exact for step in parse_log(SECTIONS).steps] == [False, False, False, True]
    # Tokens a second up to a step, and the tokens of a step, give its exact time.
    timed = SECTIONS.replace("  vocab_size", "  train_batch_tokens: 1048864\n  vocab_size")
    times = [step.seconds for step in parse_log(timed).steps]
    assert times[:3] == [Decimal("61.000"), Decimal("122.000"), Decimal("183.000")]
    # The line of the cap gives the exact time of its own step.
    (step,) = parse_log(
        "9/10 train_loss: 2.5 train_time: 3.1m\n"
        "stopping_early: wallclock_cap train_time: 183000ms step: 9/10\n"
    ).steps
    assert (step.seconds, step.exact) == (183, True)
    assert not parse_log("9/10 train_loss: 2.5 train_time: 3.1m\n").train_exact


def test_a_seed_in_a_section_of_its_own_is_found() -> None:
    text = f"{BASELINE}".replace("Running PyTorch", f"seed:11\n{RULE}\nRunning PyTorch").replace(
        "seed:1337\n", ""
    )
    assert parse_log("import os\n" + text).seed == 11


@given(
    st.lists(
        st.tuples(
            st.integers(1, 10**6),
            st.floats(0, 99, allow_subnormal=False),
            st.floats(0, 1),
            st.floats(0.001, 1e5),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 10**6),
    st.integers(0, 2**31),
)
def test_our_own_lines_come_back(
    steps: list[tuple[int, float, float, float]], batch_tokens: int, seed: int
) -> None:
    lines = [f"runs/a: 1,231,696 parameters, bfloat16 on 1 x cpu with 2 threads, seed {seed}"]
    t = TrainConfig(batch_tokens=batch_tokens, iterations=10**6)
    lines += [step_line(t, step, loss, scale, seconds) for step, loss, scale, seconds in steps]
    log = parse_log("\n".join(lines))
    assert (log.seed, log.settings) == (seed, {"model_params": 1231696})
    assert len(log.steps) == len(steps)
    for read, (step, loss, scale, seconds) in zip(log.steps, steps, strict=True):
        assert read.step == step
        assert float(read.losses["train_loss"]) == pytest.approx(loss, abs=5.01e-5)
        assert float(read.losses["lr_scale"]) == pytest.approx(scale, abs=5.01e-4)
        assert read.seconds is not None
        assert float(read.seconds) == pytest.approx(seconds, abs=5.01e-4)


@given(st.text(alphabet="step:0123/ val_lossbptrain.e+-,\n=", max_size=300) | st.text(max_size=300))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        log = parse_log(text)
    except UserError:
        return
    assert log.steps or log.scores


@pytest.mark.parametrize("speed", ["1e-20", "0.000001", "1", "1e99"])
def test_a_time_of_any_speed_is_read(speed: str) -> None:
    log = parse_log(
        "Hyperparameters:\n  train_batch_tokens: 999999999999\n"
        f"999999999999/999999999999 train_loss: 3.0 train_time: 1.0m tok/s: {speed}"
    )
    assert [step.step for step in log.steps] == [999999999999]


@pytest.mark.parametrize("text", ["", "step 3 of 10", "x" * 10_000_000, "step:1/2 train_loss:nan"])
def test_what_is_no_log_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no line of it reads"):
        parse_log(text)


def test_our_calibration_is_counted_as_published_ones_are() -> None:
    log = parse_log(
        "step:9/9 val_loss:2.0000 val_bpb:1.1000 train_time:595000ms\n"
        "training text last read at 603.5 s of training\n"
    )
    assert (log.train_seconds, log.calibration_seconds) == (595, 8.5)
