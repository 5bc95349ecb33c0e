# The first target that needs the environment creates it. It is created again when its inputs change.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := runs/demo

.DEFAULT_GOAL := help
.PHONY: help env demo test test-slow results docs format clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY)  ## Create the environment in .venv

# Install torch first and on its own. A version range among the others may fetch a much larger build.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { \
	  echo "growgan needs Python 3.11 or newer, but '$(PYTHON)' was not found;" \
	       "choose another with: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "growgan needs Python 3.11 or newer, but '$(PYTHON)' is" \
	       "$$($(PYTHON) --version 2>&1); choose another with: make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv"; \
	  exit 1; }
	@echo "Installing into $(VENV); the first time takes a few minutes."
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)  ## Grow a small GAN on rendered characters (about 3 minutes)
	@rm -rf $(DEMO)
	$(BIN)/growgan grow glyphs --resolution 32 --budget 100s --set growth.start_resolution=8 --out $(DEMO)
	@$(BIN)/growgan sample $(DEMO) -n 64 --out $(DEMO)/samples.png >/dev/null
	@$(BIN)/growgan report $(DEMO) >/dev/null
	@echo
	@echo "Report:       $(CURDIR)/$(DEMO)/report.html"
	@echo "Sample sheet: $(CURDIR)/$(DEMO)/samples.png"

test: $(READY)  ## Run the linter, the type checker and the quick tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile

test-slow: $(READY)  ## Run the long tests; some need Chromium
	-$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[slow,fuzz]'
	GROWGAN_BROWSER=1 $(BIN)/pytest -m slow --timeout 3600

results: $(READY)  ## Compute the toolbox figures of docs/RESULTS.md (several hours; skips what exists)
	$(BIN)/python benchmarks/gaussian_mixture_2d.py
	$(BIN)/python benchmarks/growth.py run --group presets --minutes 10 --seeds 1 --jobs 2
	$(BIN)/python benchmarks/growth.py run --group began-gammas --minutes 3 --jobs 2

docs: $(READY)  ## Build the documentation into site/
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

format: $(READY)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and the caches, but no runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find src tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} + || true
