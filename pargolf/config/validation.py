"""Which settings fit together: what no field can say alone, checked for a whole configuration."""

import math
from dataclasses import replace

from pargolf.config.bounds import check_fields
from pargolf.config.schema import EvalConfig, ModelConfig, OptimConfig, RunConfig
from pargolf.system.errors import require

TOP_LEVEL = {"zstd": 22, "zlib": 9, "brotli": 11, "lzma": 9}


def validate_model(m: ModelConfig) -> None:
    """Raise UserError, naming the first fault, if no model of this shape can be built."""
    check_fields(m, "model")
    require(
        m.d_model % m.n_heads == 0,
        f"model.d_model {m.d_model} is not a multiple of model.n_heads {m.n_heads}",
    )
    require(
        m.d_head % 2 == 0,
        f"head size {m.d_head} is odd; RoPE rotates pairs, so d_model / n_heads must be even",
    )
    require(
        m.n_heads % m.kv_heads == 0,
        f"model.n_heads {m.n_heads} is not a multiple of model.kv_heads {m.kv_heads}",
    )
    require(
        m.rope_dims <= m.d_head and m.rope_dims % 2 == 0,
        f"model.rope_dims {m.rope_dims} must be even and at most a head's size, {m.d_head}",
    )
    require(
        not m.loop_times or m.loop_from <= m.loop_to < m.n_layers,
        f"model.loop_from {m.loop_from} and loop_to {m.loop_to} must be layers, in this order, of"
        f" {m.n_layers}",
    )
    require(m.bigram_rows != 1, "model.bigram_rows must be 0 or at least 2: one row stands for no pair")
    for name, most in (
        ("q_rank", m.d_model), ("k_rank", m.d_kv), ("v_rank", m.d_kv), ("out_rank", m.d_model),
        ("fc_rank", m.d_model), ("proj_rank", m.d_model), ("rotation_rank", m.d_model // 2),
    ):  # fmt: skip
        rank = getattr(m, name)
        require(rank <= most, f"model.{name} must be in 0..{most}, its matrix's full rank, is {rank}")
    for name, ranks in (
        ("legendre_attn", ("q_rank", "k_rank", "v_rank", "out_rank")),
        ("legendre_mlp", ("fc_rank", "proj_rank")),
    ):
        require(
            not getattr(m, name) or not any(getattr(m, rank) for rank in ranks),
            f"model.{name} is of full matrices: set {', '.join(f'model.{rank}' for rank in ranks)} to 0",
        )
    if m.depth_attention != "off":
        require(
            m.mix_init == "identity",
            f"model.mix_init {m.mix_init} has no mix to set: model.depth_attention replaces it",
        )
        for name in ("skip_gates", "parallel", "loop_times"):
            require(
                getattr(m, name) in (False, "off", 0),
                f"model.{name} has no skips and streams to change: model.depth_attention replaces them",
            )
    if m.parallel != "off":
        # Its lanes begin once, and the encoder's layers hand on one stream.
        least = max(m.n_layers // 2, m.visits[m.n_skips] + 1 if m.loop_times else 0)
        least = max(least, m.loop_to + 1 if m.loop_times else 0)
        require(
            least <= m.parallel_from < m.n_layers,
            f"model.parallel_from must be a layer of the decoder, {least}..{m.n_layers - 1}, is"
            f" {m.parallel_from}",
        )


def validate_optim(o: OptimConfig) -> None:
    """Raise UserError, naming the first fault, if options of the optimizers contradict one another."""
    require(
        not o.update_floor_rows or o.update_floor > 0,
        "optim.update_floor_rows has no floor to hold; set optim.update_floor, to 0.35 say",
    )
    require(
        not o.muon_cautious_decay or o.muon_weight_decay > 0,
        "optim.muon_cautious_decay has nothing to decay by; set optim.muon_weight_decay",
    )
    require(
        not o.adam_cautious_decay or o.embed_weight_decay + o.vector_weight_decay > 0,
        "optim.adam_cautious_decay has nothing to decay by; set optim.embed_weight_decay",
    )
    require(
        not o.ema_nesterov or o.ema_nesterov_from < o.ema_nesterov_to,
        f"optim.ema_nesterov has no share of the run: ema_nesterov_from {o.ema_nesterov_from:g} is not below"
        f" ema_nesterov_to {o.ema_nesterov_to:g}",
    )


def validate_eval(e: EvalConfig) -> None:
    """Raise UserError, naming the first fault, if nothing can be scored so, whatever the model."""
    check_fields(e, "eval")
    require(
        e.adapt == "lora" or not e.phases,
        f"eval.phases {e.phases} are pauses of eval.adapt lora; set that, or eval.phases to 0",
    )


def validate(c: RunConfig) -> RunConfig:
    """Return `c` if its settings fit together; raise UserError naming the first that do not."""
    check_fields(c)
    validate_model(c.model)
    t, x, e = c.train, c.export, c.eval
    require(
        t.batch_tokens % (t.micro_batches * c.model.seq_len) == 0,
        f"train.batch_tokens {t.batch_tokens} is not a multiple of train.micro_batches"
        f" {t.micro_batches} x model.seq_len {c.model.seq_len}",
    )
    require(
        not t.max_seconds or t.reserve_seconds < t.max_seconds,
        f"train.reserve_seconds {t.reserve_seconds:g} leaves nothing of train.max_seconds {t.max_seconds:g}",
    )
    require(
        not (t.ema_decay and t.swa_every) and not (t.tail_ema and (t.ema_decay or t.swa_every)),
        "train.ema_decay, swa_every and tail_ema all say what mean of the weights to end with; set one",
    )
    require(
        not t.tail_ema or t.min_lr < t.tail_ema_below,
        f"train.tail_ema never begins: learning rates end at train.min_lr {t.min_lr:g} and not below"
        f" train.tail_ema_below {t.tail_ema_below:g}",
    )
    validate_optim(c.optim)
    require(
        e.stride <= c.model.seq_len,
        f"eval.stride {e.stride} is larger than the window, model.seq_len {c.model.seq_len}",
    )
    validate_eval(e)
    require(
        not (x.model_bytes and x.max_loss),
        "export.model_bytes and export.max_loss both say how fine to round; set one",
    )
    require(
        x.quantizer != "challenge"
        or (x.rounding, x.scale_bits, x.attn_sigmas, x.mlp_sigmas, x.embed_sigmas)
        == ("nearest", 10, 0, 0, 0),
        'export.quantizer "challenge" rounds as the baseline does; leave export.rounding, export.scale_bits'
        " and the sigmas out",
    )
    require(
        x.lqer_rank > 0 or not x.lqer_weighted,
        "export.lqer_weighted weighs a correction of no rank; set export.lqer_rank, to 4 say",
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


def shared_by(c: RunConfig, world_size: int) -> RunConfig:
    """`c` with the least multiple of its micro-batches that `world_size` ranks divide, for the same rows.

    Raises UserError if the batch cannot be cut into so many, or in an order in which the cut decides what
    the rows are: "stream" begins each piece a token later.
    """
    pieces = math.lcm(c.train.micro_batches, world_size)
    if c.data.order == "stream" or c.train.batch_tokens % (pieces * c.model.seq_len):
        validate_world(c, world_size)
    return replace(c, train=replace(c.train, micro_batches=pieces))
