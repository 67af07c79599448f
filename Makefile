# Everything a person types. The work is done by `sifr-image`, in image/.
# Variables: SIFR_OWNER=ed25519:<hex> builds the owner's key into the image; SIFR_CACHE moves the cache.
IMAGE := cargo run --quiet --package image --bin sifr-image --
APT := $(if $(filter 0,$(shell id -u)),,sudo) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=600

.PHONY: help setup image run stop test bench torture fuzz repro deny clean

help:      ## this list
	@sed -n 's/^\([a-z]*\): .*## /make \1 - /p' Makefile

setup:     ## install what this machine lacks
	@command -v cargo >/dev/null || { echo "Rust is missing: install it as https://rustup.rs says, then run this again" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "installing a C compiler" && $(APT) update && \
		$(APT) --yes --no-install-recommends install build-essential >/dev/null; }
	@$(IMAGE) setup

image: setup ## build dist/ (kernel, initramfs, iPXE script, manifest, licences) and target/sifr
	@$(IMAGE) build

run: setup ## boot a node in QEMU and run a web server on it
	@$(IMAGE) demo

stop:      ## stop the node that `make run` left running
	@$(IMAGE) stop

test: setup ## every test, up to those on the booted image
	@$(IMAGE) test

bench: image ## measure the image against its targets
	@cargo run --quiet --package qemu-tests --bin bench

torture: image ## cut a node's power 200 times at random moments; CUTS, SEED
	@cargo run --quiet --package qemu-tests --bin torture -- --cuts $(or $(CUTS),200) $(if $(SEED),--seed $(SEED))

fuzz:      ## hostile bytes for every reader of them; FUZZ_SECONDS for each (60), FUZZ_JOBS, TARGETS="flist-tar …"
	@cargo run --quiet --package fuzz -- $(TARGETS)

repro:     ## build twice in different places and compare
	@$(IMAGE) repro

deny:      ## ask for known faults of the crates we use (needs cargo-deny and the internet)
	@cargo deny --version >/dev/null 2>&1 || { echo "cargo-deny is missing: cargo install --locked cargo-deny" >&2; exit 1; }
	@cargo deny --workspace check

clean:     ## remove what was built here; kernels stay in the cache
	@! kill -0 "$$(cat run/node.pid 2>/dev/null)" 2>/dev/null || { echo "a node is running: 'make stop' first" >&2; exit 1; }
	rm -rf dist run target
