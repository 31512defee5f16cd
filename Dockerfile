# syntax=docker/dockerfile:1
# Three images, and one on Istio's; `make images` makes the three without Docker (docs/images.md):
#   docker buildx build --platform linux/amd64,linux/arm64 -t understudy/proxy .
#       Envoy and the agent; istio-init and istio-proxy are both this one.
#   docker buildx build --platform linux/amd64,linux/arm64 -t understudy/empty --target empty .
#       What stands in the second container of a pod until it is needed.
#   docker buildx build --platform linux/amd64,linux/arm64 -t understudy/injector --target injector .
#       The injector.
#   docker buildx build -t understudy/proxy-istio --target proxy-istio --build-arg ISTIO_PROXY=istio/proxyv2:1.28.0 .
#       Istio's own image with this agent in it: for a mesh whose istiod asks for the extensions of Istio's Envoy.

ARG ISTIO_PROXY=istio/proxyv2:1.28.0

# The compiler runs on the machine that builds, for the machine that will run.
FROM --platform=$BUILDPLATFORM golang:1.26-bookworm AS build
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
WORKDIR /src
# Before the sources, so that a change of these keeps the downloaded modules.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN GOOS=${TARGETOS} GOARCH=${TARGETARCH} make build VERSION=${VERSION}

# Its base has /bin/sh, which the postStart hook of a pod calls.
FROM debian:12-slim AS empty
COPY --from=build /src/bin/pilot-agent-standby /usr/local/bin/pilot-agent
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/pilot-agent"]

FROM scratch AS injector
COPY --from=build /src/bin/sidecar-injector /usr/local/bin/sidecar-injector
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/sidecar-injector"]

# It has Envoy, iptables and the user already, and says in its environment which release it is of, which istiod goes by.
FROM ${ISTIO_PROXY} AS proxy-istio
COPY --from=build /src/bin/pilot-agent /usr/local/bin/pilot-agent
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/pilot-agent"]

# contrib: istiod configures filters that the plain image does not have.
FROM envoyproxy/envoy:contrib-v1.40.0 AS proxy
# iptables: istio-init is this image with other arguments. ca-certificates: TLS to the outside. curl: for people in a pod.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl iptables \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 1337 istio-proxy \
    && useradd --uid 1337 --gid 1337 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin istio-proxy \
    && install -d -o 1337 -g 1337 -m 0755 /etc/istio/proxy /var/lib/istio/data
COPY --from=build /src/bin/pilot-agent /usr/local/bin/pilot-agent
USER 1337:1337
# The base's own entrypoint starts Envoy; here the agent does, from /usr/local/bin/envoy.
ENTRYPOINT ["/usr/local/bin/pilot-agent"]
