# The image that node agents start workers from: PLATFORM_NODE_IMAGE. From the repository's root:
#   docker build --file infra/images/worker.Dockerfile --tag REGISTRY/firstlight-worker:VERSION .
ARG PYTHON=3.11.14-slim-bookworm

FROM python:${PYTHON} AS build
# Debian keeps no older versions to pin.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/firstlight/code
# What others wrote comes first, and in a layer of its own: it changes seldom. What cannot be
# compiled is a template or of another Python, and nobody imports it.
COPY LICENSE README.md constraints.txt pyproject.toml ./
RUN pip install --no-cache-dir --no-compile --constraint constraints.txt --target /opt/firstlight/site ".[worker]" \
 && (python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/firstlight/site || true)
COPY infra infra
COPY worker worker
ENV PYTHONPATH=/opt/firstlight/code:/opt/firstlight/site
RUN python3 -m worker.kernels.native.build \
 && python3 -m infra.hashing.build \
 && python3 -m compileall -q --invalidation-mode unchecked-hash .

FROM python:${PYTHON}
# /run/firstlight is where a container finds its agent, /models where its model's files appear.
RUN groupadd --gid 65532 firstlight \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /tmp --shell /bin/false firstlight \
 && mkdir -p /run/firstlight /models
COPY --from=build /opt/firstlight/site /opt/firstlight/site
COPY --from=build /opt/firstlight/code /opt/firstlight/code
ENV PYTHONPATH=/opt/firstlight/code:/opt/firstlight/site \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
WORKDIR /opt/firstlight/code
USER 65532:65532
ENTRYPOINT ["python3", "-m", "worker.main"]
