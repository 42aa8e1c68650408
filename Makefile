# Each target works alone on a fresh clone: whatever it needs, .venv first, is made on the way.
#
#   make test       quick tests and the doctests
#   make test-all   the same and the tests marked slow
#   make demo       examples/demo.py; its figure goes to examples/output
#   make bench      the benchmarks in tests/benchmarks
#   make benchmark  one row of examples/benchmark anew, all methods at one degree of breaking, in some minutes
#   make matrix     a selection of the tests beside other versions of Python, torch, numpy and escnn; hours at first, resumable
#   make dist       the wheel and the source archive, in dist, checked by twine
#   make docs       the gallery and the interface as a site, in examples/output/site; no network once the tools are there
#   make links      the same, then Sphinx asks every address outside whether it is there, which takes a network
#   make lint       format and style by ruff, the type hints by mypy
#   make types      only the type hints
#   make venv       only the virtual environment
#   make clean      remove all of it
#
# Variables of .venv. One that is given and was another when .venv was made has it made anew; without any, it stays as it is:
#   PYTHON     a Python from 3.11 on; unless given, python3, python3.12 and python3.11 are tried in this order
#   TORCH      what pip is asked for, e.g. TORCH=torch==2.12.1
#   NUMPY      the same, e.g. NUMPY=numpy==2.4.6, in place of the pin in pyproject.toml
#   ESCNN      the same, e.g. ESCNN=escnn-escience==1.0.14, a maintained fork
#   PIP_ARGS   more options for pip, e.g. PIP_ARGS='--extra-index-url URL' for a torch built for another device
#   VENV       another folder, so that several can stand side by side
#
# Read each time:
#   JOBS       how many processes share the tests: 2 unless given, 0 for this one alone
#
# Of make benchmark:
#   QUESTION    smoke unless given; DEGREE of breaking, 0.5 unless given; DATA, a folder that some questions need
#
# Of make docs:
#   GALLERY=no  show the examples without running them, which takes a quarter of an hour on 2 CPU cores
#   ONLY        run only the examples whose path matches this regular expression, e.g. ONLY=five_lines

PYTHON   ?= python3
TORCH    ?= torch==2.13.0
NUMPY    ?=
ESCNN    ?=
PIP_ARGS ?=
JOBS     ?= 2
QUESTION ?= smoke
DEGREE   ?= 0.5

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
DOCS  := $(VENV)/.docs
TYPES := $(VENV)/.types
LINT  := $(VENV)/.lint
BUILD := $(VENV)/.build
SITE  := examples/output/site

PIP    := $(BIN)/python -m pip --disable-pip-version-check install $(PIP_ARGS)
# The pinned versions stand in pyproject.toml, under [dependency-groups]. They are read from there by hand because the
# pip that a new virtual environment contains is too old for `pip install --group`.
# What follows the group's name is left out of it: the caller asks for another version.
PINNED := $(BIN)/python -c 'import re, sys, tomllib; \
	pins = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"][sys.argv[1]]; \
	print(*[pin for pin in pins if re.split("[=<>;]", pin)[0] not in sys.argv[2:]])'

# An interpreter that the caller named is used or refused, never silently replaced.
CANDIDATES := $(strip $(PYTHON) $(if $(filter file,$(origin PYTHON)),python3.12 python3.11))

# What .venv was made with, and what the caller asks for otherwise.
CHOICES := PYTHON TORCH NUMPY ESCNN
CHOSEN  := $(foreach name,$(CHOICES),$(if $(filter command,$(origin $(name))),$(name)=$($(name))))
STALE   := $(filter-out $(shell cat $(VENV)/.choices 2>/dev/null),$(CHOSEN))

.PHONY: venv test test-all lint types demo bench benchmark matrix docs links dist clean
ifneq ($(STALE),)
.PHONY: $(VENV)/.python
endif

venv: $(READY)

test: $(READY)
	$(BIN)/python -m pytest -q -m "not slow" -n $(JOBS) --dist loadfile

test-all: $(READY) $(TYPES)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

lint: $(LINT) types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

types: $(TYPES)
	$(BIN)/python -m mypy

demo: $(READY)
	mkdir -p examples/output
	MPLBACKEND=Agg $(BIN)/python examples/demo.py --out examples/output

bench: $(READY)
	@set -e; for script in $(wildcard tests/benchmarks/bench_*.py); do \
	    echo "== $$script"; $(BIN)/python $$script; \
	done

benchmark: $(READY)
	mkdir -p examples/output
	$(BIN)/python -W ignore examples/benchmark/run.py --question $(QUESTION) --degrees $(DEGREE) --seeds 1 \
	    $(if $(DATA),--data $(DATA)) --runs examples/output/benchmark_$(QUESTION).jsonl

# The environments lie in a folder of their own and go as they come; what ran is not run again (tests/benchmarks/matrix.jsonl).
matrix: $(VENV)/.python
	$(BIN)/python tests/benchmarks/matrix.py --pip-args "$(PIP_ARGS)"

dist: $(BUILD)
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*

# Each example writes its figure to examples/output as well. Any warning is an error, and any link within that leads nowhere.
docs: $(DOCS)
	mkdir -p $(SITE)
	MPLBACKEND=Agg GALLERY="$(GALLERY)" ONLY="$(ONLY)" $(BIN)/python -m sphinx -b html -W --keep-going -q \
	    -d examples/output/doctrees examples/site $(SITE)
	$(BIN)/python examples/site/links.py $(SITE)
	@echo "the site: $(SITE)/index.html"

links: docs
	GALLERY=no $(BIN)/python -m sphinx -b linkcheck -q -d examples/output/doctrees examples/site examples/output/linkcheck

$(VENV)/.python:
	@for python in $(CANDIDATES); do \
	    if $$python -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' 2>/dev/null; then \
	        found=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "escnn_relax needs Python 3.11 or later, which none of these is: $(CANDIDATES)." >&2; \
	    echo "Name one: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	echo "making $(VENV) with $$($$found --version)"; \
	rm -rf $(VENV) && $$found -m venv $(VENV) && touch $@
	@echo $(foreach name,$(CHOICES),"$(name)=$($(name))") >$(VENV)/.choices

# escnn and BackPACK come without the dependencies they declare (py3nj needs a Fortran compiler, torchvision is unused);
# those they really have are among the pins. The package itself is built by the pinned setuptools, so pip need not
# fetch a second one into an isolated build environment. The import at the end proves the installation.
$(READY): $(VENV)/.python pyproject.toml
	$(PIP) "$(TORCH)" $(if $(NUMPY),"$(NUMPY)") $$($(PINNED) pinned $(if $(NUMPY),numpy))
	$(PIP) --no-deps $(if $(ESCNN),"$(ESCNN)") $$($(PINNED) without-dependencies $(if $(ESCNN),escnn)) $$($(PINNED) oracles)
	$(PIP) --no-deps --no-build-isolation --editable .
	$(BIN)/python -W ignore -c 'import escnn_relax'
	@touch $@

$(TYPES): $(READY)
	$(PIP) $$($(PINNED) typing)
	@touch $@

$(LINT): $(READY)
	$(PIP) $$($(PINNED) lint)
	@touch $@

$(BUILD): $(READY)
	$(PIP) $$($(PINNED) build)
	@touch $@

$(DOCS): $(READY)
	$(PIP) $$($(PINNED) docs)
	@touch $@

clean:
	rm -rf $(VENV) build dist escnn_relax.egg-info examples/output .pytest_cache .hypothesis .mypy_cache
	rm -rf examples/site/api examples/site/gallery examples/site/gallery_sections
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
