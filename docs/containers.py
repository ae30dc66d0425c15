"""Dockerfile and apptainer.def: the same image from the same steps, with the versions of requirements.lock."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = "debian:bookworm-slim"
HOME = "/opt/popatlas"
EXTRAS = "completion,greedy,provenance"
SOURCES = (
    "pyproject.toml", "requirements.lock", "README.md", "LICENSE", "Snakefile", "config.yaml",
    "rules", "envs", "profiles", "workflow",
)  # fmt: skip
# what programs need to find in the image, whoever runs it
ENVIRONMENT = {
    "PATH": f"{HOME}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "PYTHONNOUSERSITE": "1",
}
# libgomp1 is for torch
STEPS = (
    "apt-get update && apt-get install --yes --no-install-recommends ca-certificates libgomp1 python3 python3-venv"
    " && rm -rf /var/lib/apt/lists/*",
    f"python3 -m venv {HOME}"
    f" && {HOME}/bin/pip install --no-cache-dir --constraint /src/requirements.lock '/src[{EXTRAS}]'"
    f" && rm -rf /src && {HOME}/bin/popatlas --version",
)
LABELS = {
    "org.opencontainers.image.title": "popatlas",
    "org.opencontainers.image.description": "From a BIDS cohort to an unbiased atlas, fused labels, tables and a QC report",
    "org.opencontainers.image.licenses": "Apache-2.0",
}
FILES = ("Dockerfile", "apptainer.def", ".dockerignore")
HEAD = "# Written by docs/generate.py (docs/containers.py); versions are those of requirements.lock.\n"


def container_text(name: str) -> str:
    """Return one of `FILES`."""
    texts = {"Dockerfile": _dockerfile, "apptainer.def": _definition, ".dockerignore": _ignored}
    return HEAD + texts[name]()


def _ignored() -> str:
    return "*\n" + "".join(f"!{name}\n" for name in SOURCES) + "**/__pycache__\n"


def _dockerfile() -> str:
    labels = " \\\n      ".join(f'{key}="{value}"' for key, value in LABELS.items())
    environment = " \\\n    ".join(f"{key}={value}" for key, value in ENVIRONMENT.items())
    first, second = (step.replace(" && ", " \\\n    && ") for step in STEPS)
    return f"""# docker build -t popatlas .
# docker run --rm -v BIDS:/bids:ro -v OUT:/out --user "$(id -u):$(id -g)" --read-only --network none \\
#     popatlas /bids /out participant
FROM {BASE}
LABEL {labels}
ENV {environment}
SHELL ["/bin/sh", "-e", "-c"]
# hadolint ignore=DL3008
RUN {first}
COPY {" ".join(name for name in SOURCES if (ROOT / name).is_file())} /src/
{"".join(f"COPY {name} /src/{name}" + chr(10) for name in SOURCES if (ROOT / name).is_dir())}RUN {second}
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["popatlas"]
CMD ["--help"]
"""


def _definition() -> str:
    files = "".join(f"    {name} /src/{name}\n" for name in SOURCES)
    steps = "".join(f"    {step}\n" for step in STEPS)
    exports = "".join(f"    export {key}={value}\n" for key, value in ENVIRONMENT.items())
    labels = "".join(f"    {key} {value}\n" for key, value in LABELS.items())
    return f"""# apptainer build popatlas.sif apptainer.def
# apptainer run --containall --bind BIDS:/bids:ro,OUT:/out popatlas.sif /bids /out participant
Bootstrap: docker
From: {BASE}

%labels
{labels}
%setup
    mkdir -p "$APPTAINER_ROOTFS/src"

%files
{files}
%post
    set -e
{steps}
%environment
{exports}
%runscript
    exec popatlas "$@"
"""
