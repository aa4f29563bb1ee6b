# Two commands matter: `make run` and `make test`. Both install what is missing first.
#   make run    the main job on the embedded default, ends with a report and links
#   make test   all tests (offline)
#   make check  lint, types, architecture, generated files
#   make up / make down   the project's Prefect and MLflow servers
#   make repro  the same job through DVC's door
#   make soak   the tests that take longer
#   make peers  .venv-peers: the programs that some benchmarks compare with and whose pins clash with ours
# VENV= and PYTHON= choose the environment; TORCH_INDEX= chooses where torch comes from; WORKERS= how many processes test.

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CPU_INDEX := https://download.pytorch.org/whl/cpu
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: run test check up down repro soak peers install

run: install
	@$(BIN)/groundup run

test: install
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not soak" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

soak: install
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m soak

check: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m tasks.dvcfile --check
	@$(BIN)/python -m tasks.readme --check
	@$(BIN)/python -m benchmarks.readme --check
	@$(BIN)/python docs/draw_pipeline.py --check

up: install
	@$(BIN)/groundup up

down:
	@if [ -x $(BIN)/groundup ]; then $(BIN)/groundup down; else echo "nothing is installed, so nothing runs"; fi

repro: install
	@PATH="$(abspath $(BIN)):$$PATH" dvc repro

peers: .venv-peers/.installed

.venv-peers/.installed: benchmarks/peers.txt
	@test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/python -m pip install -q -r benchmarks/peers.txt
	@touch $@

install: $(STAMP)

# Without an NVIDIA card PyTorch's small CPU build is enough; its own index is used if it answers within 3 seconds.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@index="$(TORCH_INDEX)"; \
	if [ -z "$$index" ] && ! [ -e /proc/driver/nvidia/version ] \
	    && $(BIN)/python -c "import urllib.request as u; u.urlopen('$(CPU_INDEX)/torch/', timeout=3)" 2>/dev/null; \
	then index="$(CPU_INDEX)"; fi; \
	$(BIN)/python -m pip install -q -c constraints.txt $${index:+--index-url "$$index"} torch
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $(STAMP)
