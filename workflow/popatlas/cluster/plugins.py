"""The plugin of Snakemake that sends jobs to a queue or a cloud: whether it is installed, and how it would be."""

from __future__ import annotations

from importlib.util import find_spec

from popatlas.errors import ConfigError

EXTRAS = {"slurm": "slurm", "kubernetes": "kubernetes", "aws-batch": "aws-batch"}  # executor: extra of popatlas
PREFIX = "snakemake_executor_plugin_"  # how Snakemake knows the modules of plugins


def check_plugin(executor: str) -> None:
    """Refuse an executor that Snakemake does not know here.

    Parameters
    ----------
    executor : str
        Name that a profile gives.

    Raises
    ------
    ConfigError
        With the line that installs its plugin.
    """
    module = PREFIX + executor.replace("-", "_")
    if find_spec(module) is None:
        package = f"'popatlas[{EXTRAS[executor]}]'" if executor in EXTRAS else module.replace("_", "-")
        raise ConfigError(f"{executor}: its plugin of Snakemake is not installed. Remedy: pip install {package}")
