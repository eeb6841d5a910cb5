# The commands that people and CI run. `make` alone lists them.

CARGO ?= cargo
DB ?=

.DEFAULT_GOAL := help
.PHONY: help demo test simulate fuzz torture bench check fmt fmt-check clippy doc nats fixtures clean

help: ## lists the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## replicates two copies of a sample database (or of DB=path) before your eyes
	$(CARGO) build --release --locked
	@server=$$(scripts/nats-server) && exec scripts/demo --nats-server "$$server" $(if $(DB),--db "$(DB)")

test: ## runs all tests against a real nats-server
	@server=$$(scripts/nats-server) && NATS_SERVER="$$server" $(CARGO) test --locked

simulate: ## simulates clusters for ten minutes, in schedules made of seeds (WOODCHUCK_SIMULATE_SECONDS, _FIRST)
	@scripts/simulate

fuzz: ## fuzzes all that reads bytes from outside for an hour (WOODCHUCK_FUZZ_SECONDS, SEED; needs nightly and cargo-fuzz)
	@scripts/fuzz

torture: ## kills daemons, writers and servers at random for an hour (WOODCHUCK_TORTURE_SECONDS, SEED)
	@server=$$(scripts/nats-server) && NATS_SERVER="$$server" WOODCHUCK_TORTURE_SECONDS=$${WOODCHUCK_TORTURE_SECONDS:-3600} \
		$(CARGO) test --locked --test main -- --nocapture torture::

bench: ## measures, as ratios in one run
	@server=$$(scripts/nats-server) && NATS_SERVER="$$server" $(CARGO) bench --locked --bench '*'

check: fmt-check clippy doc ## formatting, lints and documentation, all warnings denied

fmt: ## formats the sources
	$(CARGO) fmt

fmt-check: ## fails if the sources are not formatted
	$(CARGO) fmt --check

clippy: ## lints
	$(CARGO) clippy --locked --all-targets -- -D warnings

doc: ## builds the documentation
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

nats: ## prints the path of a nats-server, fetching the pinned one if PATH has none
	@scripts/nats-server

fixtures: ## makes the golden WALs of fixtures/wal again, with real SQLite
	python3 scripts/fixtures.py

clean: ## removes what was built, the fetched nats-server too
	$(CARGO) clean
