# make demo: everything on a simulated cohort. make test: everything checked. Needs Python 3.11 to 3.13, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := results/demo
# nproc would answer with the threads of one process
CORES ?= $(shell env -u OMP_NUM_THREADS nproc)
# one thread per process: jobs run side by side, and oversubscribed threads are many times slower
export OMP_NUM_THREADS := 1
export OPENBLAS_NUM_THREADS := 1
export ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS := 1
export OMP_WAIT_POLICY := PASSIVE

# a file is the unit of work, the longest come first (tests/conftest.py); one process more than there are cores, since one
# often waits, for Slurm or a browser
PYTEST := $(BIN)/pytest --numprocesses $$(( $(CORES) + 1 )) --dist loadfile --no-loadscope-reorder

.PHONY: help venv demo test test-fast kernels lint docs bench pictures lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

venv: $(STAMP) ## create .venv with the locked dependencies

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"popatlas needs Python 3.11 to 3.13, found {v[0]}.{v[1]}. Remedy: make PYTHON=python3.12")'
	@echo "popatlas: creating $(VENV) (about 2 GB, a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@# one line of the lock goes against the metadata of its package (constraints.txt): pip takes it without its dependencies
	@grep -v '^snakemake-executor-plugin-slurm==' requirements.lock | \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --requirement /dev/stdin
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --no-deps --requirement requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@# pip would compile on one core; a file that does not compile, such as a template, is none of ours
	@$(BIN)/python -m compileall -q -j $(CORES) $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

demo: venv ## simulate a cohort, run the whole pipeline, print where the results are
	@start=$$(date +%s); \
	$(BIN)/popatlas simulate $(DEMO)/bids --subjects 8 --seed 1 && \
	$(BIN)/popatlas run --cores $(CORES) && \
	echo "demo finished in $$(( ($$(date +%s) - start) / 60 )) min $$(( ($$(date +%s) - start) % 60 )) s"

test: venv kernels ## run the whole test suite on all cores, Slurm and browser included
	$(PYTEST) tests

test-fast: venv kernels ## run the tests for the loop while working: units and properties without the slow ones
	$(PYTEST) -m 'not slow' tests/unit tests/property

kernels: venv ## compile the kernels, once for all processes
	@$(BIN)/python -m tests.kernels

lint: venv ## format, types, imports, rules
	$(BIN)/ruff check workflow benchmarks tests docs
	$(BIN)/ruff format --check workflow benchmarks tests docs
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/snakefmt --check --line-length 120 Snakefile rules
	@$(BIN)/python -m tests.cohorts results/lint/bids
	$(BIN)/snakemake --lint --config bids_dir=results/lint/bids out_dir=results/lint/out

docs: venv ## build the documentation, warnings are errors
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: venv ## benchmarks on simulated data (those on real data: see benchmarks/README.md)
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.cohort_simulated --out $(DEMO)

pictures: venv ## pictures of the README from the demo's report
	$(BIN)/python docs/pictures.py $(DEMO)/derivatives docs/images

lock: ## write requirements.lock from a fresh environment
	rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet --constraint constraints.txt '.[dev,docs]'
	$(VENV)-lock/bin/pip install --quiet --no-deps $$(sed -n 's/^# without its dependencies: //p' constraints.txt)
	$(VENV)-lock/bin/pip freeze --exclude popatlas | sed 's/+cpu$$//' > requirements.lock
	rm -rf $(VENV)-lock

clean: ## remove the environment and all results
	rm -rf $(VENV) results site dist build
