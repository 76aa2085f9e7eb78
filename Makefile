# Each target works on a fresh clone with a compiler and Python 3.10+; a second call is quick.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q
MODEL  ?= smollm2-135m
PORT   ?= 3000
FUZZ   ?= 1000000
MINUTES ?= 20
ONCE   ?=
NATIVE := CMakeLists.txt $(shell find src/ridgeline/backends/cpu/native -type f 2>/dev/null)

.PHONY: demo serve test test-all nets fuzz soak bench lint clean

demo: $(VENV)/.measured
	$(BIN)/ridgeline run $(MODEL) "Name the capital of France."

serve: $(VENV)/.built
	$(BIN)/ridgeline serve $(MODEL) --port $(PORT)

# With ONCE=--once=FILE what passes is written there, and left out the next time.
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not parity and not slow and not soak" $(ONCE)

test-all: $(VENV)/.parity
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not alone" $(ONCE)
	$(BIN)/python -m pytest -m alone $(ONCE)

# The native loop alone: under sanitizers, in its counting build, cross-compiled for aarch64.
nets: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -rs

# Hostile model files: FUZZ mutations of every kind, in some minutes on one core.
fuzz: $(VENV)/.dev
	$(BIN)/python tests/fuzz/run.py all --count $(FUZZ)

# Random traffic with crashes, each answer against the request alone: MINUTES of it, or the one scenario of a SEED or TRACE.
# First a crowd of clients, ten times what a server can take, for five minutes.
soak: $(VENV)/.dev
	$(if $(SEED)$(TRACE),,PYTHONPATH=tests $(BIN)/python -m soak.overload --minutes 5)
	PYTHONPATH=tests $(BIN)/python -m soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(TRACE),--trace $(TRACE))

bench: $(VENV)/.built
	$(BIN)/ridgeline bench $(MODEL) --prefill 512 --decode 128 --concurrency 1,4,16,32 --threads 2 --json

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(filter %.cpp %.h,$(NATIVE)) $(wildcard tests/native/*)
	$(BIN)/validate-pyproject pyproject.toml
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml
	$(BIN)/yamllint --strict --config-data '{extends: default, rules: {document-start: disable, line-length: {max: 120}}}' compose.yaml
	$(BIN)/python -m pytest tests/pure/test_layout.py

clean:
	rm -rf $(VENV) build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The install is editable: Python changes need nothing, native ones rebuild here.
$(VENV)/.built: $(BIN)/python pyproject.toml $(NATIVE)
	$(PIP) install -e .
	touch $@

$(VENV)/.dev: $(VENV)/.built
	$(PIP) install -e '.[dev]'
	touch $@

# The ceilings that attainment is held against; measured once per machine (some 6 s).
$(VENV)/.measured: $(VENV)/.built
	$(BIN)/ridgeline hardware --measure
	touch $@

# torch is pinned: newer releases pull gigabytes of GPU packages.
$(VENV)/.parity: $(VENV)/.dev
	$(PIP) install torch==2.13.0
	$(PIP) install -e '.[dev,parity]'
	touch $@
