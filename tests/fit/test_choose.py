"""The form that is kept serves the goal, and none of the others serves it better."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pargolf.config.kinds import Slot
from pargolf.config.schema import ExportConfig
from pargolf.export.quantize import Quantized
from pargolf.fit.choose import Choice, as_floats, choose
from pargolf.system.errors import UserError

some = st.lists(
    st.builds(Choice, st.just("form"), st.binary(max_size=9), st.floats(-1e-3, 1e-2)), min_size=1, max_size=4
)


@given(some, st.integers(1, 10))
def test_within_the_bytes_none_loses_less(choices: list[Choice], limit: int) -> None:
    within = [x for x in choices if len(x.data) <= limit]
    if not within:
        with pytest.raises(UserError, match=rf"down to {limit} bytes"):
            choose(choices, ExportConfig(model_bytes=limit))
        return
    best = choose(choices, ExportConfig(model_bytes=limit))
    assert best in within and all(best.loss <= x.loss for x in within)
    assert not any(len(x.data) < len(best.data) and x.loss <= best.loss for x in choices)


@given(some, st.floats(1e-6, 1e-2))
def test_within_the_loss_none_is_smaller(choices: list[Choice], most: float) -> None:
    within = [x for x in choices if x.loss <= most]
    if not within:
        with pytest.raises(UserError, match="even the best quality loses more than"):
            choose(choices, ExportConfig(max_loss=most))
        return
    best = choose(choices, ExportConfig(max_loss=most))
    assert best in within and all(len(best.data) <= len(x.data) for x in within)
    assert not any(x.loss < best.loss and len(x.data) <= len(best.data) for x in choices)


def test_a_table_that_needs_all_8_bits_is_tried_in_float16() -> None:
    state = {"e": torch.randn(2, 3), "a": torch.randn(2, 3)}
    slots = {"e": Slot("embed", None), "a": Slot("attn", 0)}

    def fitted(bits: int) -> dict[str, Quantized]:
        return {name: Quantized(torch.zeros(2, 3).char(), torch.ones(2).half(), bits) for name in state}

    assert as_floats(state, slots, fitted(7)) == {}
    tried = as_floats(state, slots, fitted(8))
    assert tried.keys() == {"e"} and torch.equal(tried["e"], state["e"].half())
