# Written by docs/generate.py (docs/containers.py); versions are those of requirements.lock.
# docker build -t popatlas .
# docker run --rm -v BIDS:/bids:ro -v OUT:/out --user "$(id -u):$(id -g)" --read-only --network none \
#     popatlas /bids /out participant
FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="popatlas" \
      org.opencontainers.image.description="From a BIDS cohort to an unbiased atlas, fused labels, tables and a QC report" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PATH=/opt/popatlas/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LC_ALL=C.UTF-8 \
    PYTHONNOUSERSITE=1
SHELL ["/bin/sh", "-e", "-c"]
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates libgomp1 python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml requirements.lock README.md LICENSE Snakefile config.yaml /src/
COPY rules /src/rules
COPY envs /src/envs
COPY profiles /src/profiles
COPY workflow /src/workflow
RUN python3 -m venv /opt/popatlas \
    && /opt/popatlas/bin/pip install --no-cache-dir --constraint /src/requirements.lock '/src[completion,greedy,provenance]' \
    && rm -rf /src \
    && /opt/popatlas/bin/popatlas --version
USER 1000:1000
WORKDIR /tmp
ENTRYPOINT ["popatlas"]
CMD ["--help"]
