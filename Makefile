# `make demo` and `make test` are all a newcomer needs; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers/bin
PEERS_READY := .venv-peers/.ready

.PHONY: help demo test test-browser test-cross-library lint format bench bench-quick bench-peers bench-peers-quick
.PHONY: accuracy accuracy-quick
.PHONY: evidence evidence-quick
.PHONY: peers sparse sparse-quick normalization normalization-quick findings picture clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 16

demo: $(READY) ## examine a small network trained on scikit-learn's digits; writes report.html
	$(BIN)/wellcond examine examples/digits.py

test: $(READY) ## the tests, doctests included
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not browser"

test-browser: $(READY) ## open the page in headless Chromium (Debian: apt-get install chromium)
	$(BIN)/python -m pytest -n auto --dist worksteal -m browser

test-cross-library: $(PEERS_READY) ## the tests against other libraries, in .venv-peers with all of them
	$(PEERS)/python -m pytest -n auto --dist worksteal tests/cross_library

lint: $(READY) ## format and lint (ruff), types (mypy), floors (imports go down only)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_floors.py

format: $(READY) ## let ruff rewrite what `make lint` complains about
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## what an examination, a product and a step of an optimizer cost, and how it grows
	$(BIN)/python benchmarks/examination_cost.py
	$(BIN)/python benchmarks/product_cost.py
	$(BIN)/python benchmarks/optimizer_step.py
	$(BIN)/python benchmarks/reparameterization.py
	$(BIN)/python benchmarks/layer_conditioning.py
	$(BIN)/python benchmarks/eigenvalues.py
	$(BIN)/python benchmarks/spectral_density.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/monitor_overhead.py

bench-quick: $(READY) ## the same with fewer repetitions
	$(BIN)/python benchmarks/examination_cost.py --quick
	$(BIN)/python benchmarks/product_cost.py --quick
	$(BIN)/python benchmarks/optimizer_step.py --quick
	$(BIN)/python benchmarks/reparameterization.py --quick
	$(BIN)/python benchmarks/layer_conditioning.py --quick
	$(BIN)/python benchmarks/eigenvalues.py --quick
	$(BIN)/python benchmarks/spectral_density.py --quick
	$(BIN)/python benchmarks/scale.py --quick
	$(BIN)/python benchmarks/monitor_overhead.py --quick

accuracy: $(READY) ## how often intervals, forecasts and critical sharpness hold (the tables of docs/spectra, forecast, stability)
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/forecast_order.py
	$(BIN)/python benchmarks/critical_sharpness.py

accuracy-quick: $(READY) ## the same with fewer seeds
	$(BIN)/python benchmarks/coverage.py --quick
	$(BIN)/python benchmarks/forecast_order.py --quick
	$(BIN)/python benchmarks/critical_sharpness.py --quick

bench-peers: $(PEERS_READY) ## the tables of docs/spectra-speed.md, beside other libraries, from new runs
	$(PEERS)/python benchmarks/product_cost.py --write-docs
	$(PEERS)/python benchmarks/eigenvalues.py --write-docs
	$(PEERS)/python benchmarks/spectral_density.py --write-docs
	$(PEERS)/python benchmarks/scale.py --write-docs

bench-peers-quick: $(PEERS_READY) ## the same with fewer repetitions, printed only
	$(PEERS)/python benchmarks/product_cost.py --quick
	$(PEERS)/python benchmarks/eigenvalues.py --quick
	$(PEERS)/python benchmarks/spectral_density.py --quick
	$(PEERS)/python benchmarks/scale.py --quick

peers: $(PEERS_READY) ## .venv-peers, with the other libraries that we measure and test against

sparse: $(READY) ## the tables of docs/l1-with-adam.md, from new runs
	$(BIN)/python examples/sparse_digits.py
	$(BIN)/python examples/rare_embeddings.py

sparse-quick: $(READY) ## the same with fewer and shorter runs
	$(BIN)/python examples/sparse_digits.py --quick
	$(BIN)/python examples/rare_embeddings.py --quick

normalization: $(READY) ## the tables of docs/normalization.md and docs/what-if.md, from new runs
	$(BIN)/python examples/small_batches.py
	$(BIN)/python benchmarks/what_if.py

normalization-quick: $(READY) ## the same with fewer and shorter runs
	$(BIN)/python examples/small_batches.py --quick
	$(BIN)/python benchmarks/what_if.py --quick

findings: $(READY) ## the table of docs/findings.md: planted faults found, false alarms
	$(BIN)/python -m benchmarks.false_alarms --write-docs

evidence: $(READY) ## every claim of the theory, measured (an hour); docs/evidence.md and its pictures from that run
	$(BIN)/wellcond evidence --output build/evidence --json build/evidence/evidence.json
	$(BIN)/python docs/make_evidence.py build/evidence

evidence-quick: $(READY) ## the same with two seeds and shorter runs, printed only
	$(BIN)/wellcond evidence --quick

picture: $(READY) ## the pictures of the README and the docs, from new runs (needs Chromium)
	$(BIN)/python docs/make_picture.py

clean: ## remove .venv and everything generated
	rm -rf build .venv .venv-peers .mypy_cache .ruff_cache .hypothesis report.html report.json monitor.html monitor.jsonl sparse_digits.html small_batches.html

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "wellcond needs Python 3.11 or newer; make PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# In an environment of their own: they pin and pull in what wellcond does not need.
$(PEERS_READY): pyproject.toml constraints.txt requirements-peers.txt
	$(PYTHON) -m venv .venv-peers
	$(PEERS)/pip install --quiet --constraint constraints.txt --requirement requirements-peers.txt --editable '.[dev]'
	touch $@
