# Every target sets itself up: a virtual environment in $(VENV) with the package and what its tests need.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
TRANSFORMERS ?= transformers
CODE := src tests examples benchmarks

.PHONY: quickstart test test-slow test-oldest quality style clean help

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

quickstart: $(VENV)/installed  ## Train a tiny Valley on clips made here and ask it; VIDEO=clip.mp4 shows it a clip of yours
	$(BIN)/python examples/quickstart.py $(if $(VIDEO),--video "$(VIDEO)")

test: $(VENV)/installed $(VENV)/transformers-tests  ## Run the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/installed $(VENV)/transformers-tests  ## Run the slow tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not gpu" $(ARGS)

test-oldest:  ## Run the fast tests on the oldest supported transformers, in an environment of its own
	$(MAKE) test VENV=.venv-oldest TRANSFORMERS="transformers==5.19.*" ARGS=--ignore=tests/distributed

quality: $(VENV)/installed  ## Check format and lint
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

style: $(VENV)/installed  ## Mend format and lint
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

clean:  ## Remove the virtual environments and what the quickstart wrote
	rm -rf $(VENV) .venv-oldest outputs

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]" "$(TRANSFORMERS)"
	touch $@

# transformers' own model and processor tests come with its source distribution, not with its wheel. Where it cannot be
# had, the tests that need it say so and are skipped, and the next run tries again.
$(VENV)/transformers-tests: $(VENV)/installed
	rm -rf $@ && mkdir -p $@
	version=$$($(BIN)/python -c "import importlib.metadata as m; print(m.version('transformers'))") \
	&& $(BIN)/pip download --quiet --disable-pip-version-check --no-deps --no-binary transformers --dest $@ \
		transformers==$$version \
	&& $(BIN)/python -m tarfile -e $@/transformers-$$version.tar.gz $@ \
	|| rm -rf $@
