# `make demo` and `make test` are all a newcomer needs; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test test-browser lint format bench bench-quick sparse sparse-quick picture clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

demo: $(READY) ## examine a small network trained on scikit-learn's digits; writes report.html
	$(BIN)/wellcond examine examples/digits.py

test: $(READY) ## the tests, doctests included
	$(BIN)/python -m pytest -m "not browser"

test-browser: $(READY) ## open the page in headless Chromium (Debian: apt-get install chromium)
	$(BIN)/python -m pytest -m browser

lint: $(READY) ## format and lint (ruff), types (mypy)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY) ## let ruff rewrite what `make lint` complains about
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## what an examination, a product and a step of an optimizer cost
	$(BIN)/python benchmarks/examination_cost.py
	$(BIN)/python benchmarks/product_cost.py
	$(BIN)/python benchmarks/optimizer_step.py

bench-quick: $(READY) ## the same with fewer repetitions
	$(BIN)/python benchmarks/examination_cost.py --quick
	$(BIN)/python benchmarks/product_cost.py --quick
	$(BIN)/python benchmarks/optimizer_step.py --quick

sparse: $(READY) ## the tables of docs/l1-with-adam.md, from new runs
	$(BIN)/python examples/sparse_digits.py
	$(BIN)/python examples/rare_embeddings.py

sparse-quick: $(READY) ## the same with fewer and shorter runs
	$(BIN)/python examples/sparse_digits.py --quick
	$(BIN)/python examples/rare_embeddings.py --quick

picture: $(READY) ## the pictures of the README and the docs, from new runs (needs Chromium)
	$(BIN)/python docs/make_picture.py

clean: ## remove .venv and everything generated
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis report.html report.json sparse_digits.html

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wellcond needs Python 3.11 or newer; make PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
