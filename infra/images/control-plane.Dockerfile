# The control plane without machines of its own: agents dial it. From the repository's root:
#   docker build --file infra/images/control-plane.Dockerfile --tag REGISTRY/firstlight:VERSION .
# It wants PLATFORM_API_KEY, PLATFORM_NODE_TOKEN and, to outlive its container, PLATFORM_REDIS_URL.
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
RUN pip install --no-cache-dir --no-compile --constraint constraints.txt --target /opt/firstlight/site ".[aws]" \
 && (python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/firstlight/site || true) \
 && pip install --no-cache-dir --constraint constraints.txt --target /opt/tools mypy setuptools types-PyYAML
COPY infra infra
COPY control_plane control_plane
ENV PYTHONPATH=/opt/firstlight/code:/opt/firstlight/site:/opt/tools
RUN python3 -m control_plane.compiled.build \
 && python3 -m compileall -q --invalidation-mode unchecked-hash .

FROM python:${PYTHON}
RUN groupadd --gid 65532 firstlight \
 && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /tmp --shell /bin/false firstlight \
 && mkdir -p /state \
 && chown 65532:65532 /state
COPY --from=build /opt/firstlight/site /opt/firstlight/site
COPY --from=build /opt/firstlight/code /opt/firstlight/code
ENV PYTHONPATH=/opt/firstlight/code:/opt/firstlight/site \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PLATFORM_CAPACITY=none \
    PLATFORM_HOST=0.0.0.0 \
    PLATFORM_STATE_DIR=/state
WORKDIR /opt/firstlight/code
VOLUME ["/state"]
EXPOSE 8470
USER 65532:65532
ENTRYPOINT ["python3", "-m", "control_plane.main"]
CMD ["up"]
