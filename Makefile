# The project's commands; `make` alone lists them. GNU make, a POSIX shell and Python 3.11 or newer are all that must be there.
#
#   make install PYTHON=python3.12                     another interpreter
#   make install TORCH_INDEX_URL=https://HOST/whl/cpu  torch from an index of CPU (or CUDA) builds, where the default serves others

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX_URL ?=
STUDY ?= sweeps/quickstart.yaml

# Worker processes and threads in each: three tests at a time, for two cores, because many wait for processes that they
# start. Those with a SLURM cluster share it and have nodes of their own, so one after the other in pytest's own process.
# Models here are too small for many threads.
JOBS ?= 3
THREADS ?= 1
QUICKSTART_THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ "$$n" -lt 4 ] && echo "$$n" || echo 4)
EVERYDAY := not slow and not long and not slurm and not mamba_ssm and not gpu
PYTEST = python -m pytest --dist loadfile --jaxtyping-packages=diffusion_lm,beartype.beartype
SIDE_BY_SIDE = OMP_NUM_THREADS=$(THREADS) $(PYTEST) -n $(JOBS)
ALONE = OMP_NUM_THREADS=$(THREADS) $(PYTEST) -n 0

# Torch comes at its pinned version: unpinned, an index could serve gigabytes of CUDA.
TORCH := $(shell grep '^torch==' constraints.txt)
MAMBA_SSM := mamba-ssm==2.3.2.post1
TRITON := triton==3.9.0

ACTIVATE = . "$(VENV)/bin/activate"
PIP = "$(VENV)/bin/python" -m pip --disable-pip-version-check
INSTALLED = $(VENV)/.installed
MAMBA_INSTALLED = $(VENV)/.mamba-ssm-installed

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help check-python install mamba-ssm quickstart test test-slow test-long test-all lint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "  make %-13s %s\n", $$1, $$2 }'

check-python: ## say whether PYTHON (python3) is there and new enough
	@command -v "$(PYTHON)" >/dev/null || { echo "PYTHON: '$(PYTHON)' not found; expected Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "PYTHON: $(PYTHON) is Python %d.%d; expected 3.11 or newer: make PYTHON=/path/to/python3" % sys.version_info[:2])'

install: $(INSTALLED) ## create .venv and install the project with its tests' needs

$(INSTALLED): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory check-python
	@echo "==> virtual environment in $(VENV)"
	@test -x "$(VENV)/bin/pip" || "$(PYTHON)" -m venv --clear "$(VENV)"
	@$(if $(TORCH_INDEX_URL),echo "==> $(TORCH) from TORCH_INDEX_URL" && $(PIP) install -q --index-url "$(TORCH_INDEX_URL)" "$(TORCH)",:)
	@echo "==> the project and the versions in constraints.txt (a minute or more)"
	@$(PIP) install -q -c constraints.txt -e ".[test]"
	@touch "$@"

mamba-ssm: $(MAMBA_INSTALLED) ## add the pure-Python build of mamba-ssm, which tests compare with (no CUDA needed)

$(MAMBA_INSTALLED): $(INSTALLED)
	@echo "==> $(MAMBA_SSM) without its CUDA extension, $(TRITON)"
	@$(PIP) install -q -c constraints.txt wheel setuptools packaging ninja einops "$(TRITON)"
	@MAMBA_SKIP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE $(PIP) install -q --no-build-isolation --no-deps "$(MAMBA_SSM)"
	@touch "$@"

quickstart: install ## the whole idea in minutes: default shards, the quickstart sweep, its table (STUDY=... for another)
	@echo "==> shards of the default text"
	@$(ACTIVATE) && python -m data_prep shard
	@echo "==> sweep $(STUDY)"
	@$(ACTIVATE) && OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(QUICKSTART_THREADS)} bash SLURM/sweep.sh "$(STUDY)"

test: install ## the everyday tests (JOBS=3 processes; ARGS='-k name' and the like go to pytest)
	@echo "==> everyday tests"
	@$(ACTIVATE) && $(SIDE_BY_SIDE) -m "$(EVERYDAY)" $(ARGS)

test-slow: mamba-ssm ## what `make test` leaves out: slow, SLURM, mamba-ssm and GPU tests
	@echo "==> slow, mamba-ssm and GPU tests"
	@$(ACTIVATE) && $(SIDE_BY_SIDE) -m "not slurm and not long and not ($(EVERYDAY))" $(ARGS)
	@echo "==> SLURM tests"
	@$(ACTIVATE) && $(ALONE) -m "slurm and not long" tests/slurm $(ARGS)

test-long: mamba-ssm ## enumerations of longer texts, more sizes, compiled code: a quarter of an hour
	@$(ACTIVATE) && $(SIDE_BY_SIDE) -m "long and not slurm" $(ARGS)
	@$(ACTIVATE) && $(ALONE) -m "long and slurm" tests/slurm $(ARGS)

test-all: test test-slow test-long ## all three

lint: install ## ruff
	@$(ACTIVATE) && ruff check .

clean: ## remove .venv and caches; shards and runs are yours and stay
	rm -rf "$(VENV)" *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
