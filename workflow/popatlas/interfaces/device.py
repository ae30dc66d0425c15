"""Where the networks of a step run."""

from __future__ import annotations

from popatlas.interfaces.base import PopatlasInterface, limit_threads


def torch_device(step: PopatlasInterface) -> str:
    """Return ``cuda`` when the step asks for a GPU and one is visible, otherwise ``cpu``; its record tells."""
    from popatlas.preprocess.brain import cuda_visible

    asked = step.inputs.gpu > 0
    device = "cuda" if asked and cuda_visible() else "cpu"
    limit_threads(step.inputs.threads)  # torch may have been loaded only now
    step.notes["device"] = device
    if asked and device == "cpu":
        step.notes["fallback"] = "no GPU is visible: the CPU is used"
    return device
