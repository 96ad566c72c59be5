PYTHON ?= python3
VENV ?= .venv
CHAPTER ?=
LAB_ARGS ?=

BIN := $(abspath $(VENV))/bin
PY := $(BIN)/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt
NUMBER := $(if $(CHAPTER),--chapter $(CHAPTER))

# One thread a process: notebooks and grading run side by side instead.
export OMP_NUM_THREADS ?= 1
# nbgrader calls its own helpers by bare name.
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup lab run test sync seeds ledger exercises grade book bench full lock chromium clean \
	lint check unit notebooks roundtrip browser

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(VENV)/.course: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "Installing JupyterLab, PyTorch and the course into $(VENV) (minutes, once)"
	$(PIP) -e ".[course]"
	@$(PY) -c 'from refimpl import runtime; print(runtime.describe())'
	@touch $@

$(VENV)/.dev: $(VENV)/.course
	@echo "Installing what the tests need into $(VENV) (once)"
	$(PIP) -e ".[dev]"
	@touch $@

setup: $(VENV)/.dev ## install everything, open nothing

lab: $(VENV)/.course ## install what is needed, open JupyterLab on the chapters
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/chapters $(LAB_ARGS)

run: $(VENV)/.course ## run all chapters, or one (CHAPTER=01), without a browser; print their claims
	$(PY) tools/notebooks.py run $(NUMBER)

full: $(VENV)/.course ## run a chapter at the paper's size (CHAPTER=01), on the GPU if there is one; write its record
	REFIMPL_SIZE=full $(PY) tools/notebooks.py run $(NUMBER)

sync: $(VENV)/.dev ## make the notebooks from their .py twins (CHAPTER=01: that one, executed anew)
	$(PY) tools/notebooks.py sync $(NUMBER)

seeds: $(VENV)/.dev ## measure the claims at five seeds (CHAPTER=01)
	$(PY) tools/seeds.py $(NUMBER)

ledger: $(VENV)/.dev ## write results/README.md and the summary in README.md
	$(PY) tools/ledger.py

exercises: $(VENV)/.dev ## make the exercise sheets from solutions/
	$(PY) tools/coursework.py release

grade: $(VENV)/.dev ## grade one solved sheet (FILE=exercises/.../....ipynb)
	$(PY) tools/coursework.py grade $(FILE)

book: $(VENV)/.dev ## build the static book into build/book/html
	$(PY) tools/book.py build
	$(PY) tools/book.py check

bench: $(VENV)/.dev ## measure import time and the speed of the parts that matter
	for f in benchmarks/*.py; do $(PY) $$f || exit 1; done

lock: ## renew constraints.txt (needs uv)
	uv pip compile -q --universal --python-version 3.11 --extra dev --no-header --no-annotate pyproject.toml -o constraints.txt

clean: ## remove what can be made again, but not the environment
	rm -rf build .pytest_cache .ruff_cache .hypothesis

test: $(VENV)/.dev chromium ## install what is needed, then run every check
	@$(PY) -c 'from refimpl import runtime; print(runtime.describe())'
	$(MAKE) --no-print-directory lint check unit notebooks roundtrip book browser
	@echo "All checks passed."

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: $(VENV)/.dev
	$(PY) tools/notebooks.py check
	$(PY) tools/coursework.py check
	$(PY) tools/ledger.py --check

unit: $(VENV)/.dev
	$(PY) -m pytest tests --ignore=tests/browser -n 2 --dist loadfile --jaxtyping-packages=refimpl,beartype.beartype

notebooks: $(VENV)/.dev
	$(PY) -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 -n 2 --dist loadfile chapters solutions

roundtrip: $(VENV)/.dev
	$(PY) tools/coursework.py roundtrip

chromium: $(VENV)/.dev
	$(PY) tools/browser.py ensure

browser: $(VENV)/.dev
	$(PY) -m pytest tests/browser -s
