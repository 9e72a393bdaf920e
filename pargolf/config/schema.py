"""Every setting of a run, with its type and bounds; validation.py says what must hold between several."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pargolf.challenge import BUDGET, GPUS, TIME_LIMIT
from pargolf.config.bounds import Bounds, Count, Decay, Natural, NotNegative, Positive, Share


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the GPT."""

    vocab_size: Annotated[int, Bounds(1, 65_536)] = 1024
    """Token ids 0 .. vocab_size - 1; must match the tokenizer. Shards hold 16-bit ids."""
    seq_len: Annotated[int, Bounds(1, 65_536)] = 1024
    """Context length in tokens, of training rows and of scoring windows."""
    n_layers: Annotated[int, Bounds(2, 1000)] = 11
    """Transformer layers; the first half encodes (pushes skips), the rest decodes (pops them)."""
    d_model: Annotated[int, Bounds(1, 65_536)] = 512
    """Width of the residual stream."""
    n_heads: Count = 8
    """Query heads."""
    kv_heads: Count = 4
    """Key/value heads, shared by groups of query heads (GQA)."""
    q_rank: Natural = 192
    """Rank of the factored query projection; 0 keeps it a full matrix."""
    k_rank: Natural = 0
    """Rank of the key projection; 0 keeps a full matrix."""
    v_rank: Natural = 0
    """Rank of the value projection; 0 keeps a full matrix."""
    out_rank: Natural = 0
    """Rank of attention's output projection; 0 keeps a full matrix."""
    fc_rank: Natural = 0
    """Rank of the MLP's first matrix; 0 keeps a full matrix."""
    proj_rank: Natural = 0
    """Rank of the MLP's second matrix; 0 keeps a full matrix."""
    mlp_ratio: Annotated[int, Bounds(1, 1000)] = 3
    """MLP hidden width as a multiple of d_model."""
    relu_slope: Share = 0.0
    """Slope of the MLP's ReLU for negative values, before it is squared; 0 is the plain ReLU."""
    inner_norm: bool = False
    """Normalize what the last matrix of attention and of the MLP reads, as models of few bits want it."""
    rope_base: Positive = 10000.0
    """Base of the rotary position frequencies."""
    softcap: Positive = 30.0
    """Logits are softcap * tanh(logits / softcap)."""
    rope_dims: Natural = 0
    """Dimensions of a head that RoPE turns, the first ones; the others know no position. 0: all."""
    ntk_length: Annotated[int, Bounds(0, 10**9)] = 0
    """Where seq_len is longer than this, rope_base grows with it (NTK rule); 0: nowhere."""
    q_gain: float = 1.5
    """Initial gain of the normalized queries, one learned value a head."""
    xsa_layers: Natural = 0
    """Number of last layers, at most all, whose heads write nothing along the token's own value (XSA)."""
    head_gate: Literal["off", "out", "dense", "sparse"] = "off"
    """A gate for each head's output, computed from the layer's input (see model.attention.HeadGate)."""
    head_gate_scale: Positive = 1.0
    """What a "sparse" gate's logits are multiplied by."""
    value_embed_layers: Natural = 0
    """Number of last layers, at most all, that add an embedding of the token to its values."""
    value_embed_dim: Annotated[int, Bounds(1, 65_536)] = 128
    """Width of the values' embedding, before it is projected."""
    key_offset: Share = 0.0
    """Share of the key heads, the first ones, whose keys are those of the token before: one layer then finds
    what followed a token earlier on. After the partial key offset of modded-nanogpt (pull request 169), there
    of some dimensions of all heads."""
    value_residual: bool = False
    """All layers but the first mix the first one's values into theirs (ResFormer)."""
    softcap_sides: bool = False
    """Learn the cap of positive and of negative logits, both starting at `softcap`."""
    documents: Literal["mixed", "apart"] = "mixed"
    """"apart": attention does not look across the start of a document, in training and in scoring."""
    smear: Literal["off", "early", "late"] = "off"
    """Mix the token before into each token: by a learned share of each channel ("early"), or by a gate
    computed from the token ("late"). Never across the start of a document."""
    bigram_rows: Annotated[int, Bounds(0, 10**9)] = 0
    """Rows of a table that each pair of tokens is hashed into and that is added to the embedding; 0: none."""
    bigram_dim: Annotated[int, Bounds(1, 65_536)] = 128
    """Width of the table of pairs, before it is projected."""
    bos_id: Annotated[int, Bounds(0, 65_535)] = 1
    """The token that begins a document; must be the tokenizer's. What mixes positions stops there."""
    weight_init: Literal["uniform", "orthogonal"] = "uniform"
    """Initial values of the matrices that do not start at zero."""
    embed_std: Positive = 0.005
    """Standard deviation of the embedding at init."""
    embed_init: Literal["normal", "spectral"] = "normal"
    """"spectral": singular values fall as k^-0.5, their energy that of the normal init."""
    mix_init: Literal["identity", "legendre", "sigmoid"] = "identity"
    """How each layer's mix of residual stream and embedding starts, by depth (see model.init)."""
    mix_order: Annotated[int, Bounds(0, 16)] = 2
    """Degree of the polynomial of mix_init "legendre"."""
    loop_times: Annotated[int, Bounds(0, 100)] = 0
    """The layers loop_from .. loop_to are passed through so many more times, one after the other."""
    loop_from: Annotated[int, Bounds(0, 1000)] = 3
    """The first layer that is passed through again."""
    loop_to: Annotated[int, Bounds(0, 1000)] = 5
    """The last layer that is passed through again."""
    ln_scale: bool = False
    """Layer l multiplies what its attention and its MLP read by 1/sqrt(l + 1)."""
    skip_gates: bool = False
    """A skip is mixed with the stream by a learned gate a channel, and not just added."""
    parallel: Literal["off", "joint", "lanes", "routed"] = "off"
    """How later layers arrange attention and MLP: on one input ("joint"), in a stream each ("lanes"), or in
    two streams with learned routes between ("routed"); see model.residual."""
    parallel_from: Natural = 7
    """The first layer that is arranged so."""
    legendre_attn: Annotated[int, Bounds(0, 16)] = 0
    """Degree of the polynomial of depth that attention's matrices are, in all layers but the first and the
    last (see model.shared); 0: each layer has its own."""
    legendre_mlp: Annotated[int, Bounds(0, 16)] = 0
    """The same of the MLP's matrices."""
    rotation_rank: Annotated[int, Bounds(0, 65_536)] = 0
    """Rank of the map from content to the angles that turn attention's input; 0 leaves the rotation out."""
    depth_attention: Literal["off", "softmax", "signed"] = "off"
    """Each layer attends over the outputs of all earlier layers; this replaces mixes and skips."""
    depth_order: Annotated[int, Bounds(0, 16)] = 3
    """Degree of depth_attention's position bias, in Legendre polynomials of depth."""

    @property
    def visits(self) -> tuple[int, ...]:
        """The layers in the order in which a token passes through them; the first half encodes."""
        loop = tuple(range(self.loop_from, self.loop_to + 1)) * self.loop_times
        layers = tuple(range(self.n_layers))
        return (*layers[: self.loop_to + 1], *loop, *layers[self.loop_to + 1 :])

    @property
    def n_skips(self) -> int:
        """Visits of the encoder, each mirrored by one of the decoder."""
        return len(self.visits) // 2

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_heads

    @property
    def d_kv(self) -> int:
        """Width of all keys of a token, and of all values."""
        return self.kv_heads * self.d_head

    @property
    def d_mlp(self) -> int:
        """Hidden width of the MLP."""
        return self.mlp_ratio * self.d_model


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens come from."""

    dataset: str = "data/datasets/fineweb10B_sp1024"
    """Folder with fineweb_train_*.bin and fineweb_val_*.bin."""
    tokenizer: str = "data/tokenizers/fineweb_1024_bpe.model"
    """SentencePiece model that made the shards."""
    corpus: Literal["none", "embedded"] = "none"
    """"embedded": `pargolf run` and `train` prepare the embedded articles if the folder is missing."""
    order: Literal["stream", "shuffle", "coprime", "documents"] = "stream"
    """"stream": shards in name order, as the challenge reads them. "shuffle": windows of the whole text in a
    new random order each epoch. "coprime": windows that jump through every shard by a stride, all shards in
    turn. "documents": as "shuffle", of windows that begin with a document or go on where one ended."""


@dataclass(frozen=True)
class TrainConfig:
    """The training loop: how long, in what pieces, on what."""

    start_from: str = ""
    """Run folder whose trained weights this run starts from; empty: none. Matrices that are low-rank here are
    cut out of full ones there by SVD (and multiplied out the other way round)."""
    seed: int = 1337
    """Seed of the init and of the row order; one seed on one CPU gives one result, bit by bit."""
    batch_tokens: Count = 524_288
    """Tokens an optimizer step, over all ranks."""
    micro_batches: Count = GPUS
    """Pieces a step is cut into, over all ranks (the challenge's 8). The world size must divide it with
    data.order "stream"; else a run takes the least multiple that its ranks divide."""
    iterations: Count = 20_000
    """Steps to train, unless max_seconds ends it first."""
    max_seconds: NotNegative = float(TIME_LIMIT)
    """Time limit of the training in seconds, compile warm-up not counted; 0 means none."""
    reserve_seconds: NotNegative = 0.0
    """Of max_seconds, what is kept for the reading of training text after the last step, to calibrate on."""
    compile_warmup_steps: Natural = 20
    """Steps run before the clock starts, to compile; weights and optimizer are restored after."""
    warmdown_steps: Natural = 3000
    """Steps of the learning-rate decay to 0 at the end."""
    warmdown_fraction: Share = 0.0
    """If above 0, the decay takes this share of the run (of its steps or seconds) instead."""
    warmdown_power: Positive = 1.0
    """Power that the linear decay is raised to: above 1 it falls faster at first and ends flatter."""
    adam_warmdown_fraction: Share = 0.0
    """If above 0, Adam's learning rates decay over this share of the run, and only Muon's as said above."""
    loop_share: Share = 0.0
    """Share of the run after which layers are looped (model.loop_times); before, each is passed once."""
    min_lr: Share = 0.0
    """The decay ends at this share of the learning rates."""
    ema_decay: Decay = 0.0
    """If above 0, the run ends with a running mean of its weights: this share of it stays at each step."""
    swa_every: Natural = 0
    """If above 0, the run ends with the plain mean of its weights at every so many steps."""
    swa_below: Share = 0.5
    """That mean is of the steps whose learning rates are below this share of their peak."""
    tail_ema: Share = 0.0
    """If above 0, the run ends with this share of a running mean of its last weights, the rest of them."""
    tail_ema_steps: Count = 150
    """Steps that the mean of tail_ema looks back: each brings it nearer to the weights by one such part."""
    tail_ema_below: Share = 0.3
    """The mean of tail_ema begins where Muon's learning rate falls below this share of its peak."""
    qat_share: Share = 0.0
    """Share of the run, at its end, that trains with the matrices rounded as their artifact will hold
    them (quantization-aware, straight-through); 0 is none of it, 1 all."""
    val_every: Natural = 1000
    """Score the validation rows every so many steps; 0 means only at the end."""
    log_every: Count = 100
    """Steps between two log lines."""
    track: Literal["off", "tensorboard", "wandb"] = "off"
    """Also write losses, learning rates, step time and scores for a viewer: tensorboard, into the run's
    folder; wandb (Weights & Biases), there too, and to your account if you are logged in."""
    checkpoint_every: Natural = 1000
    """Steps between two checkpoints; 0 means only at the end or when stopped."""
    dtype: Literal["auto", "bfloat16", "float32"] = "bfloat16"
    """Compute dtype; auto takes bfloat16 on GPUs and, on CPUs with bfloat16 instructions, where
    a timed multiply shows it to be faster; float32 elsewhere."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto takes a GPU where there is one: cuda (NVIDIA, or AMD under a ROCm PyTorch) or mps (Apple)."""
    threads: Natural = 0
    """CPU threads of each rank; 0: OMP_NUM_THREADS if it is set, else one for each core it may use."""
    compile: Literal["auto", "on", "off"] = "on"
    """torch.compile for the layers and the loss; auto: on with cuda, and on a CPU that has a C++ compiler;
    off with mps."""
    compile_cache: Literal["clean", "shared"] = "clean"
    """clean: a fresh compile cache inside the run folder; shared: PyTorch's usual one, faster to start."""

    @property
    def time_limit(self) -> float:
        """Time limit of the steps: max_seconds without its reserve; 0 means none."""
        return self.max_seconds - self.reserve_seconds if self.max_seconds else 0.0


@dataclass(frozen=True)
class OptimConfig:
    """Muon for the matrices inside the layers, Adam for the rest."""

    muon_lr: NotNegative = 0.02
    """Muon's learning rate, for the matrices inside the layers."""
    muon_momentum: Decay = 0.99
    """Muon's momentum after its warm-up."""
    muon_momentum_start: Decay = 0.92
    """Momentum at step 0, raised linearly to muon_momentum."""
    muon_momentum_warmup: Natural = 1500
    """Steps in which Muon's momentum rises."""
    muon_momentum_cooldown: Share = 0.0
    """Share of the run, at its end, in which Muon's momentum falls linearly to muon_momentum_end; 0: none."""
    muon_momentum_end: Decay = 0.85
    """Muon's momentum at the end of the run, if muon_momentum_cooldown is on."""
    muon_weight_decay: NotNegative = 0.038
    """Muon's decoupled weight decay: w *= 1 - lr * weight_decay."""
    muon_decay_end: Share = 1.0
    """At the run's end, muon_weight_decay has fallen to this share of it."""
    muon_decay_from: Share = 0.7
    """muon_weight_decay falls, linearly, from this share of the run on."""
    muon_row_norm: bool = False
    """Scale each row of the momentum to length 1 before it is orthogonalized (MuonEq-R)."""
    muon_neuron_norm: bool = False
    """Divide each row of an orthogonalized update, or each column of a wide one, by the root of its running
    mean square (NorMuon)."""
    muon_neuron_beta2: Decay = 0.95
    """Decay of the mean squares of muon_neuron_norm."""
    soap: Literal["off", "mlp", "all"] = "off"
    """Matrices whose momentum is whitened before it is orthogonalized (SOAP): those of the MLP, or all."""
    soap_every: Count = 10
    """Steps between two iterations for the eigenvectors in which soap whitens."""
    soap_beta2: Decay = 0.9
    """Decay of the means that soap keeps."""
    update_floor: NotNegative = 0.0
    """Least ratio of the norms of Muon's update and its matrix: shorter updates are made longer. 0: none."""
    update_floor_rows: bool = False
    """Hold update_floor in each row of a matrix, and not in the matrix as a whole."""
    outward_brake: Share = 0.0
    """Share that is taken off an update's part along its matrix where this part makes the matrix longer."""
    radius_pin: bool = False
    """Scale each matrix after a step so that the update's part across the matrix makes it no longer."""
    muon_cautious_decay: bool = False
    """muon_weight_decay only decays values that the step brings nearer to zero."""
    orthogonalize: Literal["newton-schulz", "polar-express"] = "newton-schulz"
    """Coefficients of Muon's iterations: one set for all, or one tuned for each of the first five."""
    ns_steps: Count = 5
    """Newton-Schulz iterations of a Muon step."""
    ns_dtype: Literal["auto", "bfloat16", "float32"] = "bfloat16"
    """Dtype of the Newton-Schulz iterations; auto is the compute dtype."""
    embed_lr: NotNegative = 0.03
    """Adam's learning rate for the embedding."""
    vector_lr: NotNegative = 0.02
    """Adam's learning rate for gains, scales, mixes and skip weights."""
    adam_beta1: Decay = 0.9
    """Decay of Adam's mean of the gradients."""
    adam_beta2: Decay = 0.95
    """Decay of Adam's mean of the squared gradients."""
    adam_eps: float = 1e-8
    """What Adam adds to the root of that mean before it divides by it."""
    embed_weight_decay: NotNegative = 0.0
    """Decoupled weight decay of the embedding and of tables (AdamW)."""
    vector_weight_decay: NotNegative = 0.0
    """Decoupled weight decay of gains, scales, mixes and skip weights (AdamW)."""
    adam_cautious_decay: bool = False
    """embed_weight_decay and vector_weight_decay only decay values that the step brings nearer to zero."""
    embed_beta2: Decay = 0.0
    """adam_beta2 of the embedding and of tables; 0: as adam_beta2 says."""
    vector_beta2: Decay = 0.0
    """adam_beta2 of gains, scales, mixes and skip weights; 0: as adam_beta2 says."""
    ema_nesterov: NotNegative = 0.0
    """Before each gradient all weights go on by so many times the running mean of their steps (EMA-Nesterov,
    see optim.ahead); 0: they do not."""
    ema_nesterov_decay: Decay = 0.99
    """Decay of the mean step of ema_nesterov."""
    ema_nesterov_from: Share = 0.15
    """Share of the run at which ema_nesterov begins."""
    ema_nesterov_to: Share = 0.75
    """Share of the run at which ema_nesterov ends."""
    grad_clip: NotNegative = 0.0
    """Longest gradient of all parameters together (L2); longer ones are scaled down. 0: none are."""


@dataclass(frozen=True)
class ExportConfig:
    """How weights become bytes."""

    attn_bits: Literal[1, 2, 4, 5, 6, 7, 8, 16, 32] = 6
    """Bits a value of the attention matrices: 4-8 integers scaled per row, 16 or 32 floats. 2 are the ternary
    values -1, 0 and 1 times the row's mean, 1 the signs alone; both want train.qat_share 1."""
    mlp_bits: Literal[1, 2, 4, 5, 6, 7, 8, 16, 32] = 6
    """Bits a value of the MLP's matrices, likewise."""
    embed_bits: Literal[4, 5, 6, 7, 8, 16, 32] = 16
    """Bits a value of the embedding, likewise."""
    vector_bits: Literal[16, 32] = 32
    """Bits a value of gains, scales, mixes and skip weights, which stay floats."""
    gate_bits: Literal[8, 16, 32] = 32
    """Bits a value of the gates of heads, likewise."""
    clip_quantile: Annotated[float, Bounds(0.5, 1)] = 0.9999984
    """Each row is clipped at this quantile of its absolute values before it is quantized."""
    attn_sigmas: NotNegative = 0.0
    """Above 0, the largest integer of a row of attention's matrices stands for so many standard deviations of
    the row (SDClip), and not for its clip: more make a coarser, smaller file."""
    mlp_sigmas: NotNegative = 0.0
    """The same of the MLP's matrices."""
    embed_sigmas: NotNegative = 0.0
    """The same of the embedding."""
    scale_bits: Annotated[int, Bounds(0, 10)] = 10
    """Bits of a row's scale behind its leading one; 10 are float16's own, and fewer make a smaller file."""
    rounding: Literal["nearest", "gptq"] = "nearest"
    """gptq: each error is made good in the columns still to come, as training text shows what they are
    multiplied with."""
    lqer_rank: Natural = 0
    """Rank of a correction of the rounding error, stored beside the matrices that need it most; 0: none."""
    lqer_matrices: Count = 3
    """Matrices that are corrected so."""
    lqer_weighted: bool = False
    """Correct what the error does to a matrix's output on training text, and not the error itself."""
    quantizer: Literal["pargolf", "challenge"] = "pargolf"
    """How weights are rounded. challenge: as the challenge's baseline, where a row's clip is at least 1, its
    integers come from its scale before float16 rounds the scale, and a matrix of 65,536 values or fewer
    stays float16."""
    layout: Literal["bytes", "planes", "range", "auto"] = "bytes"
    """How values are written before the codec compresses them. bytes: one byte a quantized value;
    planes: bytes, and those of floats sorted by significance; range: planes, and quantized values
    range-coded. auto: whichever makes file and code smallest."""
    codec: Literal["zstd", "zlib", "brotli", "lzma", "auto"] = "zstd"
    """Compressor of the artifact; auto takes whichever makes file and code smallest."""
    level: int = 22
    """Compression level: 1-22 for zstd, 1-11 for brotli, 1-9 for zlib and lzma; with codec auto
    each takes its highest."""
    budget: Count = BUDGET
    """Most bytes that code and model may take together."""
    code_form: Literal["compressed", "minified", "readable"] = "compressed"
    """Form of the train_gpt.py that is handed in and counted against the budget."""
    model_bytes: Natural = 0
    """Size that the artifact is to fill, code not counted: training text then decides how finely each
    row is rounded, and the bits, clip and scale_bits above are not looked at. 0: those decide."""
    max_loss: NotNegative = 0.0
    """Make the smallest artifact that loses at most so many bits per byte of training text, rounded as for
    model_bytes. 0: no such goal."""
    calibration_tokens: Count = 65_536
    """Training tokens that model_bytes and max_loss look at; max_loss is measured on as many others."""


@dataclass(frozen=True)
class EvalConfig:
    """How the artifact is scored."""

    stride: Count = 64
    """Tokens each window after the first scores; seq_len means plain rows."""
    batch_rows: Count = 32
    """Windows scored at once on each rank; on a CPU 8192 / seq_len at most."""
    documents: Literal["joined", "apart"] = "joined"
    """joined: windows go over the stream, across documents. apart: each document is scored on its own."""
    adapt: Literal["off", "sgd", "lora"] = "off"
    """Score once more while the model learns from what it has scored (see score.adapt). sgd: all its weights,
    chunk by chunk of the stream. lora: small adapters, in each document anew."""
    tilt: Annotated[float, Bounds(0, 100)] = 0.0
    """Most that a phrase which comes again adds to the logit of the token that followed it (see score.tilt).
    0: nothing."""
    sgd_chunk: Count = 32_768
    """Tokens scored between two updates of all weights."""
    sgd_lr: NotNegative = 0.005
    """Learning rate of these updates at the start, from where it falls by a cosine."""
    sgd_end: Share = 0.0
    """Share of sgd_lr at which that fall ends."""
    sgd_momentum: Decay = 0.9
    """Momentum of these updates."""
    sgd_epochs: Annotated[int, Bounds(1, 1000)] = 3
    """Updates from each chunk."""
    sgd_clip: NotNegative = 1.0
    """Longest gradient of such an update (L2). 0: any."""
    lora_chunk: Count = 48
    """Tokens of each document scored between two updates of its adapters."""
    lora_documents: Annotated[int, Bounds(1, 1024)] = 64
    """Documents scored at once on each rank, with adapters of their own; on a CPU 8192 / seq_len at most."""
    lora_places: Literal["all", "q-v-head"] = "all"
    """Where adapters are put: at q, k, v, past attention, past the MLP and at the head; or fewer."""
    lora_rank: Annotated[int, Bounds(1, 1024)] = 80
    """Rank of each adapter."""
    lora_alpha: NotNegative = 144.0
    """What adapters add is scaled by lora_alpha / lora_rank."""
    lora_lr: NotNegative = 1e-4
    """Adam's learning rate for the adapters."""
    lora_beta1: Decay = 0.0
    """Decay of Adam's mean of their gradients."""
    lora_beta2: Decay = 0.99
    """Decay of Adam's mean of their squared gradients."""
    lora_weight_decay: NotNegative = 0.5
    """Decoupled weight decay of the adapters."""
    lora_warm: bool = False
    """The next documents take over the adapters' first matrices, which no score depends on alone."""
    phases: Annotated[int, Bounds(0, 1000)] = 0
    """With lora, pauses in which all weights learn from documents that are done, by the sgd settings."""
    phase_documents: Count = 2500
    """Documents that are done by the last of these pauses, which come at equal shares of them."""
    compressors: bool = False
    """Also measure xz and zstd on the validation text, to compare the score with."""


@dataclass(frozen=True)
class RunConfig:
    """Everything about one run, as written to its config.json."""

    preset: str = field(default="", kw_only=True, compare=False)
    """The stack it was made of, such as "demo+legendre-mix": a name for people, and no setting."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
