VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Small matrices gain nothing from threads, and the tests run side by side.
ONE_THREAD := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo test gpu check bench plan clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

install: $(STAMP)  ## the pinned environment in .venv; everything below does it first

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)  ## from scratch, the V-cycle as published, the best recipe and one layer alone on the embedded speeches, then what was saved
	$(BIN)/mlrun -m hydra/launcher=local experiment=demo_scratch,demo_vcycle,demo_best,demo_small run=outputs/demo

test: $(STAMP)  ## every claim of the README and the docs
	$(ONE_THREAD) $(BIN)/python -m pytest -n 2

gpu: $(STAMP)  ## what must hold on an NVIDIA GPU, then how fast it is there
	$(BIN)/python -m pytest -m gpu
	$(BIN)/python -m benchmarks gpu

check: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)  ## seconds and ratios beside their targets, in one table; idle cores, under ten minutes
	$(BIN)/python -m benchmarks

plan: $(STAMP)  ## the paper's headline worked out: levels, FLOPs, stages
	$(BIN)/mlrun task=plan experiment=bert_large

clean:  ## remove the environment, caches and builds; outputs/ stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks *.egg-info
	find . -name __pycache__ -not -path './outputs/*' -prune -exec rm -rf {} +
