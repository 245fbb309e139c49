# The image: one program on a base with glibc and libgcc, nothing else. `make image` builds it, and
# docs/releasing.md says how, for which architectures, and how it is checked.
#
# Both bases are Debian 12: the program needs a glibc no older than the one it was linked against.
# Name them by digest for a release: --build-arg BASE=gcr.io/distroless/cc-debian12@sha256:…
ARG BUILDER=docker.io/library/rust:1.95-bookworm
ARG BASE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILDER} AS builder
WORKDIR /build

# Kernels for arm64 come with pages of 4, 16 or 64 KiB; jemalloc runs on those up to the size that it
# was built for, 2^16 bytes. Its build reads this for that architecture only.
ENV AARCH64_UNKNOWN_LINUX_GNU_JEMALLOC_SYS_WITH_LG_PAGE=16

# Dependencies alone first: with sources that hold nothing, all of the work that Cargo.lock decides.
# This layer stays as long as the manifests do.
COPY Cargo.toml Cargo.lock ./
COPY dev/testbed/Cargo.toml dev/testbed/
RUN mkdir -p src dev/testbed/src \
    && echo '//! Nothing yet.' | tee src/lib.rs src/main.rs >dev/testbed/src/lib.rs \
    && echo 'fn main() {}' >>src/main.rs \
    && cargo build --release --locked \
    && rm -r src

COPY src src
# The sources may be older than what was just built from none: cargo goes by dates. Symbols and line
# tables stay, for backtraces; compressed, the file is little more than half as large.
RUN touch src/lib.rs src/main.rs \
    && cargo build --release --locked \
    && objcopy --compress-debug-sections=zlib target/release/mongomirror /mongomirror

FROM ${BASE}
COPY LICENSE /licenses/mongomirror
COPY --from=builder /mongomirror /usr/local/bin/mongomirror

# A panic says where; errors, which are values and often expected, do not gather backtraces.
ENV RUST_BACKTRACE=1 RUST_LIB_BACKTRACE=0

ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="MongoMirror" \
      org.opencontainers.image.description="Keeps a second MongoDB database exactly equal to the first, live" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}"

# By number, so that `runAsNonRoot` can be checked without the base's /etc/passwd.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/mongomirror"]
CMD ["operator"]
