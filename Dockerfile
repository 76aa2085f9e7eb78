# syntax=docker/dockerfile:1
# The server on a bare CPU, with TGI's entrypoint, port and cache:
#   docker run -p 8080:80 -v ridgeline:/data IMAGE --model-id smollm2-135m
FROM python:3.12-slim-bookworm AS build
# The base image's release pins the compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml CMakeLists.txt README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
# The wheels are those of the build: no index is asked. numpy's own tests are a tenth of the image.
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-compile --no-index --find-links /wheels ridgeline-llm \
    && find /usr/local/lib/python3.12/site-packages/numpy -type d -name tests -prune -exec rm -rf {} + \
    && useradd --uid 1000 --user-group --no-create-home ridgeline \
    && install --directory --owner=ridgeline --group=ridgeline /data
# As in TGI's image. What is downloaded, packed or measured is kept in /data; HF_TOKEN is for gated models. The launcher
# reads HOSTNAME too, which docker would set to a name of its own. Where ports below 1024 are not for everybody, as in
# some Kubernetes clusters, set PORT.
ENV HOSTNAME=0.0.0.0 \
    PORT=80 \
    XDG_CACHE_HOME=/data \
    HOME=/data \
    PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 80
USER 1000:1000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"PORT\"]}/health')"]
ENTRYPOINT ["text-generation-launcher"]
