# `make demo` and `make test` work on a fresh machine with Python 3.10+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# One training process per core; with a GPU, one in all.
TEAM = $(BIN)/torchrun --standalone --nproc-per-node $$($(BIN)/python -c "import os, torch; print(1 if torch.cuda.is_available() else os.cpu_count())")

# Tests run in as many processes as there are cores, at most four: each has models of its own in memory.
PYTEST = $(BIN)/python -m pytest tests --numprocesses logical --maxprocesses 4 --dist loadfile

export RAY_USAGE_STATS_ENABLED = 0
export TOKENIZERS_PARALLELISM = false

.PHONY: help install demo test test-quick test-faults lint docs train-mini train-more train-mini-sdxl eval-mini examples bench clean

help:            ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## */\t/' | expand -t 14

install: $(INSTALLED)   ## .venv with the pinned dependencies

# torch first: where pip has a CPU build at hand it is taken, and nothing after it pulls another one.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(INSTALLED)

demo: install    ## learn the eight example concepts with the bundled model
	$(BIN)/textinv demo

test: install lint   ## everything that must pass
	$(PYTEST) -m 'not faults'

test-faults: install ## nodes and processes that come, go, die or hang, on a Ray of several nodes
	$(BIN)/python -m pytest tests -m faults

test-quick: install  ## what is worth running after every change
	$(PYTEST) -m 'not slow'

lint: install    ## style, types, layering
	$(BIN)/ruff check .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install    ## the documentation as a site in site/; broken links and missing docstrings fail
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

train-mini: install  ## draw the data and train the bundled models again (needs Node.js)
	cd training/characters && npm ci --no-audit --no-fund
	$(BIN)/python -m training.build
	$(BIN)/python -m training.tokenizer
	$(TEAM) -m training.vae
	$(BIN)/python -m training.clip
	$(BIN)/python -m training.judge
	$(TEAM) -m training.text
	$(TEAM) -m training.unet
	$(MAKE) eval-mini

train-more: install  ## train the bundled UNet and text encoder on, for HOURS=... or their full length (needs Node.js)
	cd training/characters && npm ci --no-audit --no-fund
	$(BIN)/python -m training.build
	$(BIN)/python -m training.tokenizer
	$(TEAM) -m training.vae --encode
	$(TEAM) -m training.unet $(if $(HOURS),--hours $(HOURS))
	$(MAKE) eval-mini

train-mini-sdxl: install  ## train the SDXL model of the bundled drawings, for HOURS=... or its full length (needs Node.js)
	cd training/characters && npm ci --no-audit --no-fund
	$(BIN)/python -m training.build
	nice -n 19 $(TEAM) -m training.sdxl --encode
	nice -n 19 $(TEAM) -m training.sdxl --rate 2e-4 $(if $(HOURS),--hours $(HOURS))

eval-mini: install   ## measure the bundled models and rewrite their cards
	$(BIN)/python -m training.evaluate

examples: install    ## draw the example concepts again (needs Node.js)
	$(BIN)/python -m training.examples

bench: install   ## how fast the packed step is on this machine
	$(BIN)/python benchmarks/step.py

clean:           ## remove what the commands above made
	rm -rf $(VENV) build outputs site .pytest_cache .mypy_cache .ruff_cache
