# Thin on purpose: it finds a Python, makes the environment and calls book/steps/build.py. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.SUFFIXES:
.PHONY: help env book notebook test bench compare seeds trust links wheel lab serve clean

PROFILE ?= standard
PROFILES := smoke standard full
CORES ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# Some shells export ENV with another meaning: only "conda" from there counts.
ifneq ($(origin ENV),command line)
ENV := $(if $(filter conda,$(ENV)),conda,venv)
endif
PORT ?= 8000
SEEDS ?= 100

ifeq ($(filter $(PROFILE),$(PROFILES)),)
$(error Unknown PROFILE=$(PROFILE): choose one of $(PROFILES))
endif
ifeq ($(filter $(ENV),venv conda),)
$(error Unknown ENV=$(ENV): choose venv or conda)
endif

ifneq ($(filter notebook,$(MAKECMDGOALS)),)
ifeq ($(NAME),)
$(error Say which notebook: make notebook NAME=00_how_to_read)
endif
endif

ifeq ($(ENV),conda)
VENV ?= .conda
else
VENV ?= .venv
endif
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.prompt-memory-ready
BUILD := $(RUN) book/steps/build.py --profile $(PROFILE) --cores $(CORES)
STATIC := book/_build/html/index.html

# A shim may exist and still not run, and a system Python may lack venv: try, do not guess.
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	for q in $$(type -ap $$p); do $$q -c '$(USABLE)' 2>/dev/null && echo $$q && exit; done; done)
# Without an NVIDIA driver the CPU wheel of torch saves gigabytes.
CPU_WHEELS := https://download.pytorch.org/whl/cpu
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)

help: ## this list
	@echo "make TARGET [PROFILE=smoke|standard|full] [CORES=$(CORES)] [ENV=venv|conda]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 13

env: $(STAMP) ## the environment: .venv with the pins of pyproject.toml (ENV=conda: environment.yml)

book: $(STAMP) ## run what changed, build the book, publish it as book/_build/html
	@$(BUILD) --publish

notebook: $(STAMP) ## execute one notebook again: NAME=01_counting (or NAME=01; SET="seed=3 profile=smoke": beside the book)
	@$(BUILD) --notebook "$(NAME)"$(if $(SET), --set "$(SET)")

test: $(STAMP) ## style and tests, on the smoke profile; publishes nothing
	@$(RUN) -m ruff check .
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder tests

bench: $(STAMP) ## the tuner against prompt tuning of one string at a time with peft (QUICK=1: seconds)
	@$(RUN) -m prompt_memory.bench --models build/$(PROFILE)/models --output build/bench --threads $(CORES) $(if $(QUICK),--quick)

compare: $(STAMP) ## claims of this build against the committed reference (ACCEPT=1 replaces the reference)
	@$(RUN) book/steps/compare.py --profile $(PROFILE) $(if $(ACCEPT),--accept)

# The profile of `make seeds` is smoke unless one is named: a hundred seeds of anything larger take days.
seeds: $(STAMP) ## every chapter with SEEDS=100 seeds (NAME=03 one, CHEAP=12 cheap ones, MINUTES=60 until then); goes on
	@$(RUN) book/steps/seeds.py --profile $(if $(filter command line,$(origin PROFILE)),$(PROFILE),smoke) --seeds $(SEEDS) \
		--cores $(CORES) $(if $(NAME),--chapter $(NAME)) $(if $(CHEAP),--cheap $(CHEAP) --no-summary) $(if $(MINUTES),--minutes $(MINUTES))

trust: $(STAMP) ## deliberate errors of science, one at a time: does a test notice each? (MINUTES=20 until then; goes on)
	@PYTHONPATH=book/steps $(RUN) tests/mutate.py $(if $(MINUTES),--minutes $(MINUTES))

links: $(STAMP) ## do the addresses outside the book still answer? (asks each once; needs a network)
	@$(RUN) book/steps/links.py book/_build/html

# The wheel is made from the sdist, so that a file missing there is missed; both by the environment's own setuptools.
wheel: $(STAMP) ## the package without the book's tools: dist/*.tar.gz and dist/*.whl
	@rm -rf dist
	@$(RUN) -c "from setuptools import build_meta; build_meta.build_sdist('dist')" >/dev/null
	@$(RUN) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	@ls dist/*

lab: $(STAMP) ## JupyterLab on the text notebooks; outputs are kept under build/lab
	@JUPYTERLAB_SETTINGS_DIR=build/lab/settings $(VENV)/bin/jupytext-config set-default-viewer myst
	@JUPYTERLAB_SETTINGS_DIR=build/lab/settings $(RUN) -m jupyter lab --notebook-dir=. notebooks

serve: $(STAMP) ## show the finished book at http://localhost:8000 (PORT=...)
	@test -f $(STATIC) || { echo "There is no book yet: run make book." >&2; exit 2; }
	@$(RUN) -m http.server --bind 127.0.0.1 --directory book/_build/html $(PORT)

clean: ## remove everything that was built; the environment stays
	rm -rf build book/_build .snakemake dist

$(VENV)/.prompt-memory-ready: pyproject.toml environment.yml
ifeq ($(ENV),conda)
	@command -v conda >/dev/null || { echo "ENV=conda needs conda on the PATH." >&2; exit 2; }
	@test -x $(RUN) || conda env create --yes --prefix $(VENV) --file environment.yml
	@conda env update --prefix $(VENV) --file environment.yml
	@$(RUN) -m pip install --quiet --no-deps --editable .
else
	@test -n "$(PYTHON)" || { echo "This needs Python 3.11 or 3.12 with venv; name one: make env PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(RUN) -c '' 2>/dev/null || { echo "Making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null && ! $(RUN) -c 'import torch' 2>/dev/null; then \
		echo "No GPU: trying the CPU wheel of $(TORCH) first"; \
		$(RUN) -m pip install --quiet --disable-pip-version-check --timeout 5 --retries 0 --index-url $(CPU_WHEELS) $(TORCH) 2>/dev/null \
		|| echo "The CPU wheel index did not answer; taking the default index"; \
	fi
	@echo "Installing the pinned packages into $(VENV)"
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[book,test]'
endif
	@touch $@
