# Thin targets over cargo; `make help` lists them.

CARGO  ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)

# Everything is selected together, and with an example, which wants what tests want: cargo then
# builds each dependency once, for all targets below, and not once for every set of features.
DEVELOPMENT := --workspace --locked --bins --example demo

.DEFAULT_GOAL := help
.PHONY: help build test test-outage test-cluster fuzz fetch lint fmt deny crds chart image sbom bench many demo demo-cluster clean

# Whatever takes docker's options: docker, podman, buildah.
CONTAINER ?= docker
RELEASE  := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE    ?= mongomirror:$(RELEASE)

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build the optimised program, target/release/mongomirror
	$(CARGO) build --locked --release

test: fetch ## Run all tests against real servers, which are fetched first
	$(CARGO) test --locked --bench mirror -- --quick
	$(CARGO) test --locked --bench many -- --quick
	$(CARGO) test --workspace --locked

test-outage: fetch ## Test an operator whose API server is away for ten minutes
	MONGOMIRROR_TEST_ALL=1 $(CARGO) test --workspace --locked --test operator_plane -- --nocapture an_api_server

# Whether the machine can be a node is known in seconds, and Kubernetes built in minutes: in this order.
test-cluster: ## Test the chart on a real cluster of one node, as root
	$(CARGO) build $(DEVELOPMENT)
	$(TARGET)/debug/testbed prepare
	$(TARGET)/debug/testbed fetch
	$(CARGO) test --workspace --locked --test cluster --test node -- --nocapture

fuzz: fetch ## Fuzz a mirror; MINUTES=120 SEED=7 VERSION=6.0.5 (or 6.0.27, both) WITH=zombies
	$(CARGO) test --locked --test fuzz -- --minutes $(or $(MINUTES),10) \
		$(if $(SEED),--seed $(SEED)) $(if $(VERSION),--version $(VERSION)) $(if $(WITH),--with $(WITH))

fetch: ## Fetch or build the servers that tests and the demo run, once
	$(CARGO) build $(DEVELOPMENT)
	$(TARGET)/debug/testbed fetch

lint: ## Check the format, and run clippy with warnings as errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

fmt: ## Format the code
	$(CARGO) fmt --all

deny: ## Check the licences and more of dependencies; offline: CHECKS="licenses bans sources"
	$(CARGO) deny --locked check $(CHECKS)

crds: ## Write the CustomResourceDefinition, docs/reference.md, and what `make chart` writes
	$(CARGO) build $(DEVELOPMENT)
	$(TARGET)/debug/mongomirror crd > $(TARGET)/mongomirrors.yaml
	cp $(TARGET)/mongomirrors.yaml crds/mongomirrors.yaml
	cp $(TARGET)/mongomirrors.yaml charts/mongomirror/files/mongomirrors.yaml
	$(TARGET)/debug/mongomirror crd --reference > $(TARGET)/reference.md
	cp $(TARGET)/reference.md docs/reference.md
	$(MAKE) chart

chart: ## Write the chart's README and deploy/mongomirror.yaml
	$(CARGO) build $(DEVELOPMENT)
	$(TARGET)/debug/testbed chart readme > $(TARGET)/chart.md
	cp $(TARGET)/chart.md charts/mongomirror/README.md
	$(TARGET)/debug/testbed chart manifest > $(TARGET)/manifest.yaml
	cp $(TARGET)/manifest.yaml deploy/mongomirror.yaml

# Dates are the commit's: the same commit makes the same labels.
image: ## Build the container image; IMAGE=registry/name:tag CONTAINER=podman BASE=… SOURCE=…
	$(CONTAINER) build --tag $(IMAGE) \
		$(if $(BASE),--build-arg BASE=$(BASE)) $(if $(BUILDER),--build-arg BUILDER=$(BUILDER)) \
		$(if $(SOURCE),--build-arg SOURCE=$(SOURCE)) --build-arg VERSION=$(RELEASE) \
		--build-arg REVISION=$$(git describe --always --abbrev=40 --dirty --exclude '*') \
		--build-arg CREATED=$$(git log -1 --format=%cI) $(IMAGE_OPTIONS) .

# The tool would mend a lock file that is out of date, and list what nobody has built; so that is
# refused first. It writes beside each Cargo.toml, with this folder's path in names that only have to
# differ.
sbom: ## Write which crates are in the program, target/sbom/mongomirror.cdx.json (CycloneDX)
	$(CARGO) metadata --locked --format-version 1 >/dev/null
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(CARGO) cyclonedx --format json \
		--spec-version 1.5 --describe binaries --no-build-deps \
		--target $(or $(TRIPLE),x86_64-unknown-linux-gnu)
	mkdir -p $(TARGET)/sbom
	sed 's|file://$(CURDIR)|file:///build|g' mongomirror_bin.cdx.json > $(TARGET)/sbom/mongomirror.cdx.json
	rm mongomirror_bin.cdx.json dev/testbed/testbed_bin.cdx.json

bench: ## Measure against real servers
	$(CARGO) bench --locked --bench mirror

many: ## Measure one operator with many mirrors
	$(CARGO) bench --locked --bench many

demo: ## Show it all: real servers, an operator, a mirror, changes, a pause, the proof
	$(CARGO) build $(DEVELOPMENT)
	$(TARGET)/debug/examples/demo

demo-cluster: ## The same in a real cluster of one node, as root
	$(CARGO) build $(DEVELOPMENT)
	$(TARGET)/debug/testbed prepare
	$(TARGET)/debug/testbed fetch
	$(TARGET)/debug/examples/demo --cluster

clean: ## Remove what was built; the fetched servers stay
	$(CARGO) clean
