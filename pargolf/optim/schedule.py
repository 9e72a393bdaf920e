"""Learning rate and momentum as plain functions of how far the run is."""

from pargolf.config.schema import OptimConfig, TrainConfig


def lr_scale(step: int, elapsed: float, t: TrainConfig) -> float:
    """Factor on every learning rate for the step numbered `step` (from 0) at `elapsed` seconds.

    1, then linear to 0 over the warm-down, to the power `warmdown_power`, but never below `min_lr`, at
    whichever end comes first: the last of `iterations`, or `time_limit`. By the clock the warm-down
    starts when the time left equals warmdown_steps times the mean step time so far, so that it takes
    about as many steps on any machine; with `warmdown_fraction` it is that share of the whole run instead.
    Source of the power: PowerCool, modded-nanogpt track 3, entry 20.
    """
    return _cooled(step, elapsed, t, t.warmdown_fraction)


def adam_lr_scale(step: int, elapsed: float, t: TrainConfig) -> float:
    """The same of Adam's learning rates, whose warm-down is the share `adam_warmdown_fraction`."""
    return _cooled(step, elapsed, t, t.adam_warmdown_fraction)


def _cooled(step: int, elapsed: float, t: TrainConfig, fraction: float) -> float:
    if fraction:
        by_steps = (t.iterations - step) / (fraction * t.iterations)
    else:
        by_steps = (t.iterations - step) / t.warmdown_steps if t.warmdown_steps else 1.0
    left = max(0.0, min(1.0, by_steps, _by_clock(step, elapsed, t, fraction)))
    if t.warmdown_power != 1:
        left **= t.warmdown_power
    return max(t.min_lr, left)


def progress(step: int, elapsed: float, t: TrainConfig) -> float:
    """Share of the run that is done at `elapsed` seconds, before the step numbered `step`."""
    return max(step / t.iterations, elapsed / t.time_limit if t.time_limit else 0.0)


def _by_clock(step: int, elapsed: float, t: TrainConfig, fraction: float) -> float:
    if not t.time_limit:
        return 1.0
    mean_step = elapsed / step if step else 0.0
    warmdown = fraction * t.time_limit or t.warmdown_steps * mean_step
    return (t.time_limit - elapsed) / warmdown if warmdown else 1.0


def decay_scale(share: float, o: OptimConfig) -> float:
    """Factor on Muon's weight decay where `share` of the run is done: 1, then linear to muon_decay_end."""
    if o.muon_decay_end == 1.0 or share <= o.muon_decay_from:
        return 1.0
    return 1.0 - (1.0 - o.muon_decay_end) * (share - o.muon_decay_from) / (1.0 - o.muon_decay_from)


def muon_momentum(step: int, o: OptimConfig, share: float = 0.0) -> float:
    """Momentum for the step numbered `step`, where `share` of the run is done.

    Linear from muon_momentum_start to muon_momentum, and at the end of the run on to muon_momentum_end.
    """
    risen = min(1.0, step / o.muon_momentum_warmup) if o.muon_momentum_warmup else 1.0
    momentum = (1 - risen) * o.muon_momentum_start + risen * o.muon_momentum
    if o.muon_momentum_cooldown:
        fallen = max(0.0, 1 - (1 - share) / o.muon_momentum_cooldown)
        momentum += fallen * (o.muon_momentum_end - momentum)
    return momentum


def ahead_by(share: float, scale: float, o: OptimConfig) -> float:
    """How many times their mean step all weights go on by before a gradient where `share` of the run is done.

    It falls with `scale`, the factor on learning rates.
    """
    return o.ema_nesterov * scale if o.ema_nesterov_from <= share < o.ema_nesterov_to else 0.0
