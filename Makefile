# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
# PYTHON chooses the interpreter the environment is made from, VENV where it stands.
PYTHON ?= python3.11
VENV ?= .venv
DEMO ?= build/demo
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test lint types wheel site bench docs panel constraints clean

help:
	@echo "make demo         set up, then run lmms_eval --model flmm_tiny --tasks mme,refcoco_seg and write $(DEMO)/index.html"
	@echo "make test         set up, then run the tests (CPU, offline)"
	@echo "make lint         ruff: rules and format"
	@echo "make types        mypy --strict on the whole import package"
	@echo "make wheel        build dist/*.whl and check what is in it"
	@echo "make site         the documentation site in build/site, its links checked (an environment of its own)"
	@echo "make bench        what grounding costs, beside the plain model and the paper's way (half an hour)"
	@echo "make docs         remake the figures, tables and CSV that README shows (needs the tiny weights)"
	@echo "make panel        every task on the embedded model: docs/panel.md and the paper's tables with its rows (minutes)"
	@echo "make constraints  let the resolver remake constraints.txt and constraints-vlmevalkit.txt from setup.cfg"
	@echo "make clean        remove what was built (not $(VENV))"

# uv is several times faster than pip, and holds what it fetches against the hashes of constraints.lock; pip, which takes
# no hashes beside a local project, takes over where uv cannot be had or cannot reach its index.
# The stamp is written last: an installation that was cut off is done again.
$(STAMP): setup.cfg pyproject.toml constraints.txt constraints.lock
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) here: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	-$(BIN)/python -m pip install --quiet -c constraints.txt uv
	$(BIN)/uv pip install --python $(BIN)/python -c constraints.lock -e '.[demo,test,lint]' || \
		$(BIN)/python -m pip install -c constraints.txt -e '.[demo,test,lint]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m flmm_plugin.adapters.lmms_eval.demo --out $(DEMO)

test: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@if [ -e docs/results/tiny.csv ]; then $(BIN)/python -m flmm_plugin.reports.tables --check README.md docs/speed.md docs/scale.md; fi

types: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/types

wheel: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/wheel dist

build/site-env/.installed: docs/requirements.txt
	$(PYTHON) -m venv build/site-env
	build/site-env/bin/python -m pip install --quiet -r docs/requirements.txt
	@touch $@

site: build/site-env/.installed
	build/site-env/bin/zensical build --clean --strict

bench: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/flmm bench --out benchmarks/results
	$(BIN)/python docs/make_speed.py
	HF_HUB_OFFLINE=1 $(BIN)/python docs/make_scale.py

docs: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python docs/make_results.py

panel: $(STAMP)
	HF_HUB_OFFLINE=1 $(BIN)/python docs/make_panel.py

constraints: $(STAMP)
	$(BIN)/uv pip compile setup.cfg --extra demo --extra keywords --extra quantized --extra test --extra lint --python-version 3.11 --python-platform linux --annotation-style line \
		--no-emit-index-url -o constraints.txt
	mkdir -p build && grep -vE '^(antlr4-python3-runtime|latex2sympy2)==' constraints.txt > build/constraints-shared.txt
	$(BIN)/uv pip compile setup.cfg --extra vlmevalkit --extra test --python-version 3.11 --python-platform linux \
		-c build/constraints-shared.txt --annotation-style line --no-emit-index-url -o constraints-vlmevalkit.txt
	for name in constraints constraints-vlmevalkit; do \
		{ echo "# The pins of $$name.txt with hashes, made by \`make constraints\`. uv takes it beside a local project (-c); pip does not."; \
		  $(BIN)/uv pip compile $$name.txt --no-deps --python-version 3.11 --python-platform linux --no-annotate --no-header \
			--no-emit-index-url --generate-hashes --quiet; } > build/$$name.lock && mv build/$$name.lock $$name.lock || exit 1; \
	done

clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
