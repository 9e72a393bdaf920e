"""How threads wait is set before PyTorch is loaded, and only if the user has not said."""

import os
import subprocess
import sys

import pytest

from pargolf.config.presets import load_preset
from pargolf.config.schema import RunConfig
from pargolf.config.validation import shared_by
from pargolf.plan import forecast
from pargolf.system import machine
from pargolf.system.errors import UserError
from pargolf.system.threads import SPINS, wait_briefly


def test_the_user_s_way_of_waiting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")):
        for variable in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(variable, raising=False)
        monkeypatch.setenv(name, value)
        before = dict(os.environ)
        wait_briefly()
        assert dict(os.environ) == before


@pytest.mark.parametrize(
    "door", ["from pargolf.cli import main; main()", "import pargolf; pargolf.load('none')"]
)
def test_every_door_sets_it_before_pytorch(door: str) -> None:
    program = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("GOMP_SPINCOUNT"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
sys.argv = ["pargolf", "plan", "demo"]
{door}
"""
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == SPINS["GOMP_SPINCOUNT"], done.stderr


def test_a_plan_says_that_its_try_was_disturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "cpu_step_seconds", lambda config, dtype: 0.1)
    waited = iter([0.0, 100.0, 100.0, 100.0])
    monkeypatch.setattr(machine, "waited_seconds", lambda: next(waited))
    names = [[row.machine for row in forecast.forecasts(load_preset("demo"))][-1] for _ in range(2)]
    assert "disturbed" in names[0]
    assert "disturbed" not in names[1]


def test_micro_batches_are_chosen_to_fit_the_ranks() -> None:
    demo = load_preset("demo")
    assert [shared_by(demo, n).train.micro_batches for n in (1, 2, 4, 8)] == [1, 2, 4, 8]
    assert shared_by(RunConfig(), 8) == RunConfig()
    with pytest.raises(UserError, match="world size 3 does not divide"):
        shared_by(demo, 3)
