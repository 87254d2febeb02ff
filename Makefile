# What there is to do here; `make help` lists it. A target that could not work is not listed: some appear with the file
# they run.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# Servers and toolchains are shared by all targets: one thing at a time.
.NOTPARALLEL:
.SUFFIXES:

# A shell without a login may not know the user's toolchain.
export PATH := $(PATH):$(HOME)/.cargo/bin

install := tests/stand/install.sh
rings := tests/stand/rings.sh
# Targets whose file is not there.
absent := $(if $(wildcard tests/demo/demo.sh),,demo) $(if $(wildcard tests/tests/fault*),,test-faults)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' -v absent=' $(absent) ' '/^[a-z-]+:.*## / && !index(absent, " " $$1 " ") { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  PGKEEP_MUST_HAVE=15,17  without these versions of PostgreSQL tests fail; others are skipped if absent'
	@echo '  PGKEEP_ALL=1            the long variants too: 5 GB, 100,000 files, every place of damage, a kill at every call'
	@echo '  PGKEEP_SEED=N           chooses the seeded share of the faults and of the soak; a run prints its own'
	@echo '  PGKEEP_SOAK_SECONDS=N   how long `make soak` runs (14400)'
	@echo '  PGKEEP_KEEP=1           keep scratch directories (below /var/tmp/pgkeep-tests or PGKEEP_SCRATCH)'
	@echo '  PGKEEP_STAND=DIR        where servers are unpacked (/var/cache/pgkeep-stand)'
	@echo '  PGKEEP_BENCH_MB=N       size of a data set of `make bench` (1000); more in tests/bench/bench.sh'
	@echo '  PGKEEP_BUDGET=SECONDS   how long `make test` may take (2400)'

.PHONY: build
build: ## optimised executables in target/release
	$(install) build
	cargo build --release --locked

ifneq ($(wildcard tests/demo/demo.sh),)
.PHONY: demo
demo: ## a first backup and restore, shown on a throw-away cluster
	$(install) build servers
	cargo build --workspace --bins --locked
	tests/demo/demo.sh target/debug
endif

# PGKEEP_BENCH_PROFILE=bench links faster, to try a change; figures that are told to others come from release.
profile := $(or $(PGKEEP_BENCH_PROFILE),release)

.PHONY: packages
packages: ## Debian packages in target/debian
	$(install) build packaging
	cargo build --release --workspace --bins --locked
	rm -rf target/pages && cargo run --quiet --locked -p pages -- target/pages
	packaging/build-packages.sh target/release target/pages

.PHONY: bench
bench: ## side by side with pg_basebackup, cp and pgbackrest (see docs/benchmarks.md)
	$(install) build servers peers
	cargo build --profile $(profile) --workspace --bins --locked
	tests/bench/bench.sh target/release target/release/measure target/bench/result.json

# What tests with servers want; it is fetched while the first rings run, which need none of it.
stand := versions clients emulators monitoring packaging homes playbooks host

.PHONY: test
test: ## everything below, within 40 minutes on two cores
	$(install) build lint servers
	@$(install) $(stand) >/dev/null 2>&1 & PGKEEP_INSTALL='$(stand)' $(rings) lint unit system boot

.PHONY: lint
lint: ## cargo fmt --check, clippy without warnings, shellcheck
	$(install) build lint
	@$(rings) lint

.PHONY: test-unit
test-unit: ## pure code, store contract, command lines: no server needed
	$(install) build
	@$(rings) unit

.PHONY: test-system
test-system: ## stories with real servers
	$(install) build servers
	@$(install) versions clients emulators monitoring packaging homes playbooks || echo 'make: going on; the tests say what they miss'
	@$(rings) system

.PHONY: test-versions
test-versions: ## of these, the ones that run with each version of PostgreSQL
	$(install) build servers
	@$(install) versions clients emulators monitoring packaging homes || echo 'make: going on; the tests say what they miss'
	@$(rings) versions

.PHONY: test-hosts
test-hosts: ## packages, units, roles and playbooks on hosts that boot (systemd, Patroni, Consul, Prometheus)
	$(install) build packaging hosts
	@$(install) emulators monitoring || echo 'make: going on; the tests say what they miss'
	@PGKEEP_BUDGET=$(or $(PGKEEP_BUDGET),7200) $(rings) hosts

# Seconds, and the first seed: a run says which seed each round had.
SECONDS_OF_SOAK := $(or $(PGKEEP_SOAK_SECONDS),14400)

.PHONY: soak
soak: ## for hours: random work, chains of incremental backups, each link compared page by page
	$(install) build servers
	@$(install) versions clients || echo 'make: going on; the tests say what they miss'
	cargo build --workspace --bins --locked
	PGKEEP_SOAK_SECONDS=$(SECONDS_OF_SOAK) PGKEEP_SOAK_ROUNDS=$(or $(PGKEEP_SOAK_ROUNDS),1000000) \
	  PGKEEP_SEED=$(or $(PGKEEP_SEED),$(shell date +%s)) PGKEEP_MUST_HAVE= \
	  cargo test -p system-tests --locked --test soak -- every_link --nocapture

ifneq ($(wildcard tests/tests/fault*),)
.PHONY: test-faults
test-faults: ## of these, crashes, full disks, damaged repositories
	$(install) build servers
	@$(rings) faults
endif
