# Two commands matter: `make run` and `make test`. Both install what is missing first.
#   make run    the main job on the embedded default, ends with a report and links
#   make test   all tests (offline)
#   make check  lint, types, architecture, generated files
#   make up / make down   the project's Prefect and MLflow servers
#   make repro  the same job through DVC's door
#   make soak   the tests that take longer
#   make peers  .venv-peers: the programs that some benchmarks compare with and whose pins clash with ours
#   make audit  what is installed, as a bill of materials, and what is known to be wrong with it
# VENV= and PYTHON= choose the environment; TORCH_INDEX= chooses where torch comes from; WORKERS= how many processes test.

SHELL := /bin/bash
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
CPU_INDEX := https://download.pytorch.org/whl/cpu
STAMP := $(VENV)/.installed
WORKERS ?= 2

.PHONY: run test check up down repro soak peers audit install

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
	@$(BIN)/python -m benchmarks.scale_model --check
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

# The bill of materials is of what is installed; the comparison needs a vulnerability service, and says if none answers.
audit: install .venv-audit/.installed
	@mkdir -p reports
	@nice .venv-audit/bin/cyclonedx-py environment $(BIN)/python --output-reproducible --of JSON -o reports/sbom.json
	@echo "bill of materials: reports/sbom.json"
	@$(BIN)/python -m benchmarks.audit .venv-audit/bin/pip-audit reports/audit.json

.venv-audit/.installed: benchmarks/audit.txt
	@test -x .venv-audit/bin/python || $(PYTHON) -m venv .venv-audit
	@.venv-audit/bin/python -m pip install -q -r benchmarks/audit.txt
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
