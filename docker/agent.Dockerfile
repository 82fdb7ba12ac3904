# The agent's image.
#
#   docker build -f docker/agent.Dockerfile -t qanat-agent .
#
# Run it in the root of a checkout. The same inputs give the same layers: no layer keeps a time, a log or a cache.
# Python's compiled files carry their source's hash in place of its date, because an image may change dates.

# A Debian with glibc. If it has no python3, Debian's is added. The digest names the index of all platforms.
ARG BASE=docker.io/library/debian:trixie-slim@sha256:d7e12182ce18b85b93007c1dedf31f2d29e01ccf3182cc4017c709b6259bc132

# ---- Base: Debian's Python, and a user for the programs ----

FROM ${BASE} AS python
RUN set -eu; \
    command -v python3 >/dev/null || { \
        apt-get update -qq; \
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends python3 >/dev/null; \
        PYTHONHASHSEED=0 python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3*; \
    }; \
    echo 'qanat:x:65532:65532:Qanat:/var/lib/qanat:/usr/sbin/nologin' >>/etc/passwd; \
    echo 'qanat:x:65532:' >>/etc/group; \
    install -d -m 0700 -o 65532 -g 65532 /var/lib/qanat /run/qanat; \
    rm -rf /var/lib/apt/lists/* /var/lib/dpkg/*-old /var/cache/apt/* /var/cache/debconf/*-old \
        /var/cache/ldconfig/* /var/log/* /tmp/*

# ---- Build, which is not part of the image ----

FROM python AS build
# Address of a private package index; its roots, if it needs any, come by `--secret id=roots,src=FILE`.
ARG PIP_INDEX_URL
# 1: mypyc compiles the modules of packets and streams. 0 saves minutes where the build is emulated.
ARG COMPILE=1
# 32-bit arm has no wheel of cffi, so the build compiles cffi there. It has none of mypy's parser either, which
# needs Rust, so these modules stay Python.
RUN set -eu; \
    packages='python3-venv ca-certificates'; \
    case "$COMPILE,$(dpkg --print-architecture)" in \
        *,armhf) compile=0 packages="$packages gcc libc6-dev python3-dev libffi-dev" ;; \
        1,*) compile=1 packages="$packages gcc libc6-dev python3-dev" ;; \
        *) compile=0 ;; \
    esac; \
    echo "$compile" >/compile; \
    apt-get update -qq; \
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $packages >/dev/null
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1 PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=0
WORKDIR /build
COPY docker/lock/build.txt docker/lock/compile.txt docker/lock/agent.txt lock/
RUN --mount=type=secret,id=roots,target=/run/roots.pem set -eu; \
    [ ! -s /run/roots.pem ] || export PIP_CERT=/run/roots.pem; \
    python3 -m venv tools; \
    tools/bin/pip install -q --require-hashes -r lock/build.txt; \
    [ "$(cat /compile)" != 1 ] || tools/bin/pip install -q --require-hashes -r lock/compile.txt; \
    tools/bin/pip wheel -q --no-build-isolation --require-hashes -w wheels -r lock/agent.txt
COPY pyproject.toml setup.py README.md LICENSE source/
COPY compiling source/compiling/
COPY certs source/certs/
COPY tunnel_core source/tunnel_core/
COPY tunnel_agent source/tunnel_agent/
RUN set -eu; \
    export QANAT_COMPILE="$(cat /compile)"; \
    tools/bin/pip wheel -q --no-deps --no-build-isolation -w wheels ./source; \
    python3 -m venv --without-pip /opt/qanat; \
    tools/bin/pip --python /opt/qanat/bin/python install -q --no-index --no-deps --no-compile wheels/*.whl; \
    tools/bin/pip --python /opt/qanat/bin/python check; \
    rm -f /opt/qanat/bin/qanat /opt/qanat/bin/qanat-server; \
    find /opt/qanat -name '*.pyi' -delete; \
    find /opt/qanat -depth -type d '(' -name _tests -o -name tests ')' -exec rm -rf '{}' ';'; \
    /opt/qanat/bin/python -m compileall -q -f --invalidation-mode unchecked-hash /opt/qanat/lib

# ---- The image ----

FROM python
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="qanat-agent" \
    org.opencontainers.image.description="The edge side of Qanat: dials out to a server and lets its users in" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.vendor="Qanat" \
    org.opencontainers.image.documentation="docker/README.md"
# Roots for https targets without a ca_file.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /opt/qanat /opt/qanat
# XDG: configuration and data are one folder, the volume.
ENV PATH=/opt/qanat/bin:/usr/local/bin:/usr/bin:/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/var/lib/qanat \
    XDG_CONFIG_HOME=/var/lib \
    XDG_DATA_HOME=/var/lib \
    QANAT_BUNDLE_FILE=/var/lib/qanat/node.pem
USER 65532:65532
WORKDIR /var/lib/qanat
VOLUME ["/var/lib/qanat"]
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["/opt/qanat/bin/qanat-agent", "health"]
ENTRYPOINT ["/opt/qanat/bin/qanat-agent"]
CMD ["run"]
