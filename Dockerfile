# The environment of a worker's runs: Python, git and the pinned packages. The project itself comes by git clone, its
# data by dvc pull (prefect.yaml), so that an image serves every commit whose constraints.txt it has.
#   docker build --tag regraft .                                                            CPU, or GPUs by torch's own CUDA
#   docker build --tag regraft --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 .    a CUDA base
#   docker build --tag regraft --build-arg EXTRA=dvc-s3 .                                   a package for the DVC remote
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG EXTRA=""
RUN apt-get update && apt-get install --yes --no-install-recommends git openssh-client && { command -v python3 || apt-get install --yes --no-install-recommends python3 python3-venv; } && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/regraft
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY flows flows
COPY tasks tasks
RUN python3 -m venv .venv && .venv/bin/python -m pip install --no-cache-dir --constraint constraints.txt ".[bundled,dask]" ${EXTRA} && .venv/bin/python -m pip uninstall --yes regraft && rm -r flows tasks
ENV PATH=/opt/regraft/.venv/bin:$PATH DVC_NO_ANALYTICS=1 DO_NOT_TRACK=1
WORKDIR /work
