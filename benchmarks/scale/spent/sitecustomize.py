"""For Python processes that find this folder in PYTHONPATH: those that run steps note the CPU time of their parts.

POPATLAS_SPENT names the folder of the notes (`benchmarks.scale.overhead`).
"""

import atexit
import builtins
import json
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

STEPS = "popatlas.interfaces.base"
CHECKS = ("_check_outputs", "_write_receipt", "_describe_inputs")
spent = {"steps": 0.0, "imports": 0.0, "checks": 0.0}
within = {"steps": 0, "imports": 0, "checks": 0}
plain = builtins.__import__


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _timed(call: Callable[..., Any], kind: str, counts: Callable[[], bool] = lambda: True) -> Callable[..., Any]:
    """Return a function whose time counts, once where it is called from within itself."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        if within[kind] or not counts():
            return call(*args, **kwargs)
        within[kind], before = 1, _cpu()
        try:
            return call(*args, **kwargs)
        finally:
            spent[kind] += _cpu() - before
            within[kind] = 0

    return timed


def _watch(*args: Any, **kwargs: Any) -> Any:
    """Import, and time the steps as soon as there are any."""
    found = plain(*args, **kwargs)
    step = getattr(sys.modules.get(STEPS), "PopatlasInterface", None)
    if step is not None and builtins.__import__ is _watch:
        # an import within the work of a step, and none within the checks that are timed anyway
        builtins.__import__ = _timed(plain, "imports", lambda: bool(within["steps"]) and not within["checks"])
        step._run_interface = _timed(step._run_interface, "steps")
        for name in CHECKS:
            setattr(step, name, _timed(getattr(step, name), "checks"))
        atexit.register(lambda: Path(os.environ["POPATLAS_SPENT"], f"{os.getpid()}.json").write_text(json.dumps(spent)))
    return found


if os.environ.get("POPATLAS_SPENT"):
    builtins.__import__ = _watch
