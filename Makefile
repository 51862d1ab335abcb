# Each target does its own set-up: a virtual environment in .venv, and what Debian packages it needs (tools/need).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint bench fuzz clean

demo: $(VENV)/ready
	@tools/need haproxy:haproxy
	@$(BIN)/python -m benchmarks.demo

test: $(VENV)/ready
	@tools/need haproxy:haproxy setpriv:util-linux unshare:util-linux prlimit:util-linux \
		systemd-nspawn:systemd-container
	@$(BIN)/pytest $(PYTEST)

lint: $(VENV)/ready
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

bench: $(VENV)/ready
	@tools/need haproxy:haproxy
	@for each in handoff memory rendering restart; do echo "== benchmarks/$$each.py"; $(BIN)/python -m benchmarks.$$each || exit 1; done

# Coverage-guided where atheris can be installed, and without it elsewhere: tests/fuzz/decoder.py.
fuzz: $(VENV)/ready
	@$(BIN)/python -c 'import atheris' 2>/dev/null || \
		$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,fuzz]' || \
		echo 'atheris cannot be installed here: going on without it'
	@$(BIN)/python -m tests.fuzz.decoder --runs 1000000
	@$(BIN)/python -m tests.fuzz.server --runs 100000

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("multibinder needs Python 3.11 or later, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/need ensurepip:python3-venv
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
