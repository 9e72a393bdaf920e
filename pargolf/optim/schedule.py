"""Learning rate and momentum as plain functions of how far the run is."""

from pargolf.config.schema import OptimConfig, TrainConfig


def lr_scale(step: int, elapsed: float, t: TrainConfig) -> float:
    """Factor on every learning rate for the step numbered `step` (from 0) at `elapsed` seconds.

    1, then linear to 0 over the warm-down, but never below `min_lr`, at whichever end comes first: the
    last of `iterations`, or `time_limit`. By the clock the warm-down starts when the time left equals
    warmdown_steps times the mean step time so far, so that it takes about as many steps on any
    machine; with `warmdown_fraction` it is that share of the whole run instead.
    """
    if t.warmdown_fraction:
        by_steps = (t.iterations - step) / (t.warmdown_fraction * t.iterations)
    else:
        by_steps = (t.iterations - step) / t.warmdown_steps if t.warmdown_steps else 1.0
    return max(t.min_lr, min(1.0, by_steps, _by_clock(step, elapsed, t)))


def progress(step: int, elapsed: float, t: TrainConfig) -> float:
    """Share of the run that is done at `elapsed` seconds, before the step numbered `step`."""
    return max(step / t.iterations, elapsed / t.time_limit if t.time_limit else 0.0)


def _by_clock(step: int, elapsed: float, t: TrainConfig) -> float:
    if not t.time_limit:
        return 1.0
    mean_step = elapsed / step if step else 0.0
    warmdown = t.warmdown_fraction * t.time_limit or t.warmdown_steps * mean_step
    return (t.time_limit - elapsed) / warmdown if warmdown else 1.0


def decay_scale(share: float, o: OptimConfig) -> float:
    """Factor on Muon's weight decay where `share` of the run is done: 1, then linear to muon_decay_end."""
    if o.muon_decay_end == 1.0 or share <= o.muon_decay_from:
        return 1.0
    return 1.0 - (1.0 - o.muon_decay_end) * (share - o.muon_decay_from) / (1.0 - o.muon_decay_from)


def muon_momentum(step: int, o: OptimConfig) -> float:
    """Momentum for the step numbered `step`: linear from muon_momentum_start to muon_momentum."""
    share = min(1.0, step / o.muon_momentum_warmup) if o.muon_momentum_warmup else 1.0
    return (1 - share) * o.muon_momentum_start + share * o.muon_momentum
