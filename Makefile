# make demo and make test each set themselves up on a machine with Python 3.11 to 3.13 and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help audit audit-full demo test check lint types floors bench slow vectors compat adapters encrypted wheel proto chromium model starts docs walks clean

help:
	@echo "make demo    five hospitals and a coordinator as real processes; about 4 minutes after installation"
	@echo "make test    every test but the slow ones"
	@echo "make check   what CI runs: lint, types, floors, tests, the site of docs/"
	@echo "make bench   ratios of speed in one run      make slow      the long tests, 20 minutes"
	@echo "make compat  secagg under other Pythons and older numpy, protobuf, cryptography"
	@echo "make adapters  secagg inside Flower, NVFlare and Ray: environments of their own, and their tests"
	@echo "make encrypted  the environment of fedseg encrypted in build/encrypted, 2 GB, and its tests"
	@echo "make vectors regenerate tests/vectors        make proto     regenerate the wire code"
	@echo "make wheel   a wheel in dist/, with the compiled kernel where there is a C compiler"
	@echo "make audit   tries to prove the claims wrong, ten minutes of one core; make audit-full: 45 (audits/README.md)"
	@echo "make model   the model of what lies between the rounds, checked with spin and gcc"
	@echo "make starts  the public starts that come with fedseg trained again and compared: a quarter of an hour of one core"
	@echo "make docs    the site of docs/ in build/site, strictly; make walks: what docs/ copies from the code"
	@echo "make chromium  headless browser for the report's screenshot"

# The exact pins are part of the stamp's reason to exist: a changed pin reinstalls.
$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11 to 3.13 is needed; run: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV): pinned versions, two minutes; 1.3 GB with a CPU build of torch, 5.2 GB with CUDA."
	@echo "Where pip would bring CUDA with torch, point it at a CPU index first: PIP_EXTRA_INDEX_URL."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/fedseg demo

test: $(STAMP)
	@$(BIN)/python -m pytest -n 2 -m "not slow"

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(STAMP)
	@$(BIN)/mypy

floors: $(STAMP)
	@$(BIN)/lint-imports

check: lint types floors test docs

slow: $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]' || \
	  echo "atheris cannot be installed here: ten minutes of coverage-guided fuzzing are left out"
	@SECAGG_EXPLORE=1 $(BIN)/python -m pytest -n 2 -m slow

compat:
	@sh tests/compat.sh

# Each beside its host's pins: see tests/adapters.
adapters: $(STAMP)
	@sh tests/adapters/environments.sh
	@$(BIN)/python -m pytest -p no:cacheprovider tests/adapters

# spu needs numpy 1, so that all of fedseg has pins of its own there.
encrypted: $(STAMP) build/encrypted/.whole
	@$(BIN)/python -m pytest -p no:cacheprovider tests/encrypted

build/encrypted/.whole: tests/encrypted/constraints.txt
	@$(PYTHON) -m venv build/encrypted
	@build/encrypted/bin/pip install --quiet --disable-pip-version-check -c tests/encrypted/constraints.txt -e '.[encrypted]'
	@build/encrypted/bin/pip check
	@touch $@

bench: $(STAMP)
	@$(BIN)/python tests/benchmarks/reach.py --reps 1
	@$(BIN)/python tests/benchmarks/bench_private.py

vectors: $(STAMP)
	@$(BIN)/python tests/vectors/generate.py

wheel: $(STAMP)
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	@ls dist

proto:
	@sh protos/generate.sh

chromium:
	@apt-get update -qq && apt-get install -y -qq chromium

# gcc compiles what spin writes.
model:
	@command -v spin gcc >/dev/null || { apt-get update -qq && apt-get install -y -qq spin gcc; }
	@$(PYTHON) audits/model/check.py

starts: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python studies/starts.py

audit: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m audits quick

audit-full: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m audits full

docs: $(STAMP) walks
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

walks: $(STAMP)
	@$(BIN)/python docs/tools/lines.py
	@$(BIN)/python docs/tools/study.py
	@$(BIN)/python docs/tools/scaling.py
	@$(BIN)/python docs/tools/faults.py

clean:
	@rm -rf $(VENV) .demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
