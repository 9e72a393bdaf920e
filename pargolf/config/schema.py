"""Every setting of a run, typed and validated."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from pargolf.challenge import BUDGET
from pargolf.system.errors import require


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the GPT. `d_head` is d_model / n_heads."""

    vocab_size: int = 1024
    """Token ids 0 .. vocab_size - 1; must match the tokenizer."""
    seq_len: int = 1024
    """Context length in tokens, of training rows and of scoring windows."""
    n_layers: int = 11
    """Transformer layers; the first half encodes (pushes skips), the rest decodes (pops them)."""
    d_model: int = 512
    """Width of the residual stream."""
    n_heads: int = 8
    """Query heads."""
    kv_heads: int = 4
    """Key/value heads, shared by groups of query heads (GQA)."""
    q_rank: int = 192
    """Rank of the factored query projection; 0 keeps it a full matrix."""
    k_rank: int = 0
    """The same for keys, and below for every other matrix of a layer; 0 is full."""
    v_rank: int = 0
    out_rank: int = 0
    fc_rank: int = 0
    """Rank of the MLP's first matrix."""
    proj_rank: int = 0
    """Rank of the MLP's second matrix."""
    mlp_ratio: int = 3
    """MLP hidden width as a multiple of d_model."""
    rope_base: float = 10000.0
    """Base of the rotary position frequencies."""
    softcap: float = 30.0
    """Logits are softcap * tanh(logits / softcap)."""
    q_gain: float = 1.5
    """Initial gain of the normalized queries, one learned value a head."""
    embed_std: float = 0.005
    """Standard deviation of the embedding at init."""
    embed_init: Literal["normal", "spectral"] = "normal"
    """"spectral": singular values fall as k^-0.5, their energy that of the normal init."""
    mix_init: Literal["identity", "legendre", "sigmoid"] = "identity"
    """How each layer's mix of residual stream and embedding starts, by depth (see model.init)."""
    mix_order: int = 2
    """Degree of the polynomial of mix_init "legendre"."""
    rotation_rank: int = 0
    """Rank of the map from content to the angles that turn attention's input; 0 leaves the rotation out."""
    depth_attention: Literal["off", "softmax", "signed"] = "off"
    """What replaces mixes and skips: attention of each layer over the outputs of all earlier ones."""
    depth_order: int = 3
    """Degree of depth_attention's position bias, in Legendre polynomials of depth."""


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from."""

    dataset: str = "data/datasets/fineweb10B_sp1024"
    """Folder with fineweb_train_*.bin and fineweb_val_*.bin."""
    tokenizer: str = "data/tokenizers/fineweb_1024_bpe.model"
    """SentencePiece model that made the shards."""
    corpus: Literal["none", "embedded"] = "none"
    """"embedded": `pargolf run` and `train` prepare the embedded articles if the folder is missing."""
    order: Literal["stream", "shuffle"] = "stream"
    """"stream": shards in name order, as the challenge reads them; "shuffle": rows in an order
    seeded anew for each epoch (for small corpora of long documents)."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop: how long, in what pieces, on what."""

    start_from: str = ""
    """Run folder whose trained weights this run starts from; matrices that are low-rank here are
    cut out of full ones there by SVD (and multiplied out the other way round)."""
    seed: int = 1337
    """Seed of the init and of the row order; one seed on one CPU gives one result, bit by bit."""
    batch_tokens: int = 524_288
    """Tokens an optimizer step, over all ranks."""
    micro_batches: int = 8
    """Pieces a step is cut into, over all ranks; the world size must divide it (the challenge's 8)."""
    iterations: int = 20_000
    """Steps to train, unless max_seconds ends it first."""
    max_seconds: float = 600.0
    """Wall-clock cap of the training in seconds, compile warm-up not counted; 0 means none."""
    compile_warmup_steps: int = 20
    """Steps run before the clock starts, to compile; weights and optimizer are restored after."""
    warmdown_steps: int = 3000
    """Steps of the linear learning-rate decay to 0 at the end."""
    warmdown_fraction: float = 0.0
    """If above 0, the decay takes this share of the run (of its steps or seconds) instead."""
    qat_share: float = 0.0
    """Share of the run, at its end, that trains with the matrices rounded as their artifact will hold
    them (quantization-aware, straight-through); 0 is none of it, 1 all."""
    val_every: int = 1000
    """Score the validation rows every so many steps; 0 means only at the end."""
    log_every: int = 100
    """Steps between two log lines."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints; 0 means only at the end or when stopped."""
    dtype: Literal["auto", "bfloat16", "float32"] = "bfloat16"
    """Compute dtype; auto takes bfloat16 on GPUs and, on CPUs with bfloat16 instructions, where
    a timed multiply shows it to be faster; float32 elsewhere."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    compile: Literal["auto", "on", "off"] = "on"
    """torch.compile for the layers and the loss; auto: on a GPU, and on a CPU that has a C++ compiler."""
    compile_cache: Literal["clean", "shared"] = "clean"
    """clean: a fresh compile cache inside the run folder; shared: PyTorch's usual one, faster to start."""


@dataclass(frozen=True)
class OptimConfig:
    """Muon for the matrices inside the layers, Adam for the rest."""

    muon_lr: float = 0.02
    muon_momentum: float = 0.99
    muon_momentum_start: float = 0.92
    """Momentum at step 0, raised linearly to muon_momentum."""
    muon_momentum_warmup: int = 1500
    """Steps of that raise."""
    muon_weight_decay: float = 0.038
    """Decoupled: w *= 1 - lr * weight_decay."""
    ns_steps: int = 5
    """Newton-Schulz iterations."""
    ns_dtype: Literal["auto", "bfloat16", "float32"] = "bfloat16"
    """Dtype of the Newton-Schulz iterations; auto is the compute dtype."""
    embed_lr: float = 0.03
    vector_lr: float = 0.02
    """Adam's learning rate for gains, scales, mixes and skip weights."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    adam_eps: float = 1e-8


TOP_LEVEL = {"zstd": 22, "zlib": 9, "brotli": 11, "lzma": 9}


@dataclass(frozen=True)
class ExportConfig:
    """How weights become bytes."""

    attn_bits: Literal[4, 5, 6, 7, 8, 16, 32] = 6
    """Bits a value of the attention matrices: 4-8 integers scaled per row, 16 or 32 floats."""
    mlp_bits: Literal[4, 5, 6, 7, 8, 16, 32] = 6
    embed_bits: Literal[4, 5, 6, 7, 8, 16, 32] = 16
    vector_bits: Literal[16, 32] = 32
    """Floats of gains, scales, mixes and skip weights."""
    clip_quantile: float = 0.9999984
    """Each row is clipped at this quantile of its absolute values before it is quantized."""
    layout: Literal["bytes", "packed", "planes", "range", "auto"] = "bytes"
    """How values are written before the codec compresses them. bytes: one byte a quantized value;
    packed: its bits without gaps; planes: bytes, and those of floats sorted by significance; range:
    planes, and quantized values range-coded. auto: whichever makes file and code smallest."""
    codec: Literal["zstd", "zlib", "brotli", "lzma", "auto"] = "zstd"
    """auto: whichever makes file and code smallest."""
    level: int = 22
    """Compression level: 1-22 for zstd, 1-11 for brotli, 1-9 for zlib and lzma; with codec auto
    each takes its highest."""
    budget: int = BUDGET
    """Largest allowed code + model bytes."""
    code_form: Literal["compressed", "minified", "readable"] = "compressed"
    """Form of the train_gpt.py that is handed in and counted against the budget."""
    model_bytes: int = 0
    """Size that the artifact is to fill, code not counted: training text then decides how finely each
    row is rounded, and the bits and clip above are not looked at. 0: those decide."""
    max_loss: float = 0.0
    """The same for the smallest artifact that loses at most so many bits per byte of training text."""
    calibration_tokens: int = 65_536
    """Training tokens looked at for that, and as many others to measure max_loss on."""


@dataclass(frozen=True)
class EvalConfig:
    """How the artifact is scored."""

    stride: int = 64
    """Tokens each window after the first scores; seq_len means plain rows."""
    batch_rows: int = 32
    """Windows scored at once on each rank."""
    compressors: bool = False
    """Also measure xz and zstd on the validation text, to give the score a scale."""


@dataclass(frozen=True)
class RunConfig:
    """Everything about one run, as written to its config.json."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)


def validate_model(m: ModelConfig) -> None:
    """Raise UserError, naming the first fault, if no model of this shape can be built."""
    for name in ("vocab_size", "seq_len", "n_layers", "d_model", "n_heads", "kv_heads", "mlp_ratio"):
        require(getattr(m, name) >= 1, f"model.{name} must be at least 1, is {getattr(m, name)}")
    require(m.n_layers >= 2, "model.n_layers must be at least 2: half of the layers encode, half decode")
    for name, most in (("n_layers", 1000), ("seq_len", 65_536), ("d_model", 65_536), ("mlp_ratio", 1000)):
        require(getattr(m, name) <= most, f"model.{name} {getattr(m, name)} is more than {most}")
    require(m.vocab_size <= 65_536, f"model.vocab_size {m.vocab_size}: shards hold 16-bit token ids")
    require(
        m.d_model % m.n_heads == 0,
        f"model.d_model {m.d_model} is not a multiple of model.n_heads {m.n_heads}",
    )
    require(
        m.d_model // m.n_heads % 2 == 0,
        f"head size {m.d_model // m.n_heads} is odd; RoPE rotates pairs, so d_model / n_heads must be even",
    )
    require(
        m.n_heads % m.kv_heads == 0,
        f"model.n_heads {m.n_heads} is not a multiple of model.kv_heads {m.kv_heads}",
    )
    d_kv = m.kv_heads * m.d_model // m.n_heads
    for name, most in (
        ("q_rank", m.d_model), ("k_rank", d_kv), ("v_rank", d_kv), ("out_rank", m.d_model),
        ("fc_rank", m.d_model), ("proj_rank", m.d_model), ("rotation_rank", m.d_model // 2),
    ):  # fmt: skip
        rank = getattr(m, name)
        require(0 <= rank <= most, f"model.{name} {rank} is outside 0 (off) .. {most}, the matrix's rank")
    for name in ("mix_order", "depth_order"):
        require(0 <= getattr(m, name) <= 16, f"model.{name} must be in 0..16, is {getattr(m, name)}")
    if m.depth_attention != "off":
        require(
            m.mix_init == "identity",
            f"model.mix_init {m.mix_init} has no mix to set: model.depth_attention replaces it",
        )
    for name in ("rope_base", "softcap", "embed_std"):
        require(getattr(m, name) > 0, f"model.{name} must be above 0, is {getattr(m, name)}")


def validate(c: RunConfig) -> RunConfig:
    """Return `c` if its settings fit together; raise UserError naming the first that do not."""
    validate_model(c.model)
    for part in dataclasses.fields(c):
        for name, value in dataclasses.asdict(getattr(c, part.name)).items():
            require_plain(f"{part.name}.{name}", value)
    t, o, x, e = c.train, c.optim, c.export, c.eval
    for section, name in (
        ("train", "batch_tokens"), ("train", "micro_batches"), ("train", "iterations"),
        ("train", "log_every"), ("optim", "ns_steps"), ("eval", "stride"), ("eval", "batch_rows"),
        ("export", "budget"), ("export", "calibration_tokens"),
    ):  # fmt: skip
        value = getattr(getattr(c, section), name)
        require(value >= 1, f"{section}.{name} must be at least 1, is {value}")
    for section, name in (
        ("train", "max_seconds"), ("train", "compile_warmup_steps"), ("train", "warmdown_steps"),
        ("train", "val_every"), ("train", "checkpoint_every"), ("optim", "muon_lr"),
        ("optim", "embed_lr"), ("optim", "vector_lr"), ("optim", "muon_weight_decay"),
        ("optim", "muon_momentum_warmup"), ("export", "model_bytes"), ("export", "max_loss"),
    ):  # fmt: skip
        value = getattr(getattr(c, section), name)
        require(value >= 0, f"{section}.{name} must not be negative, is {value}")
    for name in ("muon_momentum", "muon_momentum_start", "adam_beta1", "adam_beta2"):
        require(0 <= getattr(o, name) < 1, f"optim.{name} must be in [0, 1), is {getattr(o, name)}")
    require(
        t.batch_tokens % (t.micro_batches * c.model.seq_len) == 0,
        f"train.batch_tokens {t.batch_tokens} is not a multiple of train.micro_batches"
        f" {t.micro_batches} x model.seq_len {c.model.seq_len}",
    )
    require(
        e.stride <= c.model.seq_len,
        f"eval.stride {e.stride} is larger than the window, model.seq_len {c.model.seq_len}",
    )
    require(
        0 <= t.warmdown_fraction <= 1, f"train.warmdown_fraction must be in [0, 1], is {t.warmdown_fraction}"
    )
    require(0 <= t.qat_share <= 1, f"train.qat_share must be in [0, 1], is {t.qat_share}")
    require(0.5 <= x.clip_quantile <= 1, f"export.clip_quantile must be in [0.5, 1], is {x.clip_quantile}")
    require(
        not (x.model_bytes and x.max_loss),
        "export.model_bytes and export.max_loss both say how fine to round; set one",
    )
    top = TOP_LEVEL[x.codec] if x.codec != "auto" else max(TOP_LEVEL.values())
    require(1 <= x.level <= top, f"export.level of {x.codec} must be in 1..{top}, is {x.level}")
    return c


def validate_world(c: RunConfig, world_size: int) -> None:
    """Raise UserError if `world_size` ranks cannot share a step's micro-batches evenly."""
    require(
        c.train.micro_batches % world_size == 0,
        f"world size {world_size} does not divide train.micro_batches {c.train.micro_batches}"
        " (8 under the challenge's rule); launch a divisor of it, or change --train.micro-batches",
    )


def require_plain(path: str, value: Any) -> None:
    """UserError unless a value can be written to a file, and to a program, and be read back the same."""
    require(not isinstance(value, float) or math.isfinite(value), f"{path} must be finite, is {value!r}")
    if isinstance(value, str):
        surrogates = any("\ud800" <= char <= "\udfff" for char in value)
        require(not surrogates, f"{path} is no Unicode text: {value!r}")
