"""How the threads that PyTorch computes with wait for each other; to be set before PyTorch is loaded."""

import os

# GNU OpenMP's threads look for work this often before they sleep (docs/log.md, 2026-11-28). By default it
# is so long that one busy process beside them, which takes a core from one thread, keeps all of them waiting.
SPINS = {"GOMP_SPINCOUNT": "2000"}


def wait_briefly() -> None:
    """Have idle threads sleep soon, unless the user's environment says how they wait.

    Without effect once PyTorch is loaded. Child processes inherit it.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ.update(SPINS)
