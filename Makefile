# Each target does its own set-up: a virtual environment in .venv, and the Debian packages that it needs (tools/need).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCKS := requirements-build.lock requirements-dev.lock
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation

.PHONY: corpus demo test campaign frameworks daemons unit lint pyright docs bench sweep fuzz chaos screenshots lock clean

demo: $(VENV)/ready
	@tools/need haproxy:haproxy
	@$(BIN)/python -m benchmarks.demo

# The number of processes that run the tests. It exceeds the number of cores, because tests wait most of the time. Tests
# that must not run at the same time are in one group (tests/support/groups.py). One test:  make test PYTEST='-k test_name'
# or, by its file:  make test PYTEST=tests/integration/test_serve.py::test_name
JOBS ?= $(shell echo $$((2 * $$(nproc))))

test: $(VENV)/ready
	@tools/need haproxy:haproxy setpriv:util-linux unshare:util-linux prlimit:util-linux \
		systemd-nspawn:systemd-container strace:strace ip:iproute2 curl:curl nginx:nginx-light \
		start_server:libserver-starter-perl
	@$(BIN)/pytest -n $(JOBS) $(PYTEST)

# The tests that repeat something under load, with all their repetitions (tests/support/campaign.py): a quarter of an hour.
campaign: $(VENV)/ready
	@tools/need haproxy:haproxy systemd-nspawn:systemd-container setpriv:util-linux unshare:util-linux \
		curl:curl nginx:nginx-light
	@MULTIBINDER_CAMPAIGN=1 $(BIN)/pytest -n 2 tests/haproxy/test_no_connection_is_lost.py \
		tests/haproxy/test_the_binder_may_die.py tests/integration/test_guard.py tests/systemd/test_instances.py \
		tests/systemd/test_takeover_nginx.py tests/systemd/test_takeover_other.py \
		tests/unit/test_local_acceptors.py tests/daemons $(PYTEST)

# Plain configurations of many shapes, each compared with plain HAProxy: some five minutes. A part of it:
# make corpus CORPUS='unix shards'
corpus: $(VENV)/ready
	@tools/need haproxy:haproxy unshare:util-linux ip:iproute2 openssl:openssl
	@$(BIN)/python -m tests.corpus $(CORPUS)

# Each server of docs/frameworks.md is restarted ten times in each way under load: some twenty minutes. A part of it:
# make frameworks FRAMEWORKS='--rounds 3 uvicorn hypercorn'
frameworks: $(VENV)/ready $(VENV)/frameworks/ready
	@tools/need openssl:openssl
	@$(BIN)/python -m tests.frameworks.campaign $(FRAMEWORKS)

$(VENV)/frameworks/ready: $(VENV)/ready tests/frameworks/requirements.lock
	@rm -rf $(VENV)/frameworks
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
		--target $(VENV)/frameworks -r tests/frameworks/requirements.lock
	@touch $@

# Each daemon of docs/daemons.md is restarted ten times in each way under load: some twenty minutes. A part of it:
# make daemons DAEMONS='--rounds 3 uvicorn hypercorn'
daemons: $(VENV)/ready $(VENV)/daemons/ready
	@tools/need uwsgi:uwsgi-core uwsgi_python3:uwsgi-plugin-python3 haproxy:haproxy \
		nginx:nginx-light unbound:unbound node:nodejs go:golang-go javac:default-jdk-headless unshare:util-linux
	@ls /usr/sbin/php-fpm[0-9]* >/dev/null 2>&1 || tools/need php-fpm:php-fpm
	@$(BIN)/python -m tests.daemons.campaign $(DAEMONS)

# An environment of its own, because the daemons are commands, and need not agree with what the project depends on.
$(VENV)/daemons/ready: $(VENV)/ready tests/daemons/requirements.lock
	@$(PYTHON) -m venv --clear $(VENV)/daemons
	@$(VENV)/daemons/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
		-r tests/daemons/requirements.lock
	@touch $@

# Tests that start no process; they take about ten seconds.
unit: $(VENV)/ready
	@$(BIN)/pytest tests/unit $(PYTEST)

lint: $(VENV)/ready
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m tools.audit $(LOCKS)

# What a user of the library writes, checked as pyright does. basedpyright is pyright in a wheel that needs no download when
# it runs; 'make test' runs it too, once it is here.
pyright: $(VENV)/pyright
	@$(BIN)/pytest tests/typing $(PYTEST)

$(VENV)/pyright: $(VENV)/ready
	@$(BIN)/pip install --quiet --disable-pip-version-check --only-binary :all: --upgrade --target $@ basedpyright==1.40.2

# Generate docs/errors.md, docs/reference/commands.md and docs/reference/library.md from the code.
docs: $(VENV)/ready
	@$(BIN)/python -m tools.reference

bench: $(VENV)/ready
	@tools/need haproxy:haproxy
	@for each in accept exec exporter handoff holders hostile memory rendering restart run shards start status; do echo "== benchmarks/$$each.py"; $(BIN)/python -m benchmarks.$$each || exit 1; done

# Let each system call of the binder and of the guard fail once, with each of its errors. It takes an hour or so; a part:
# make sweep SWEEP='--only guard --every 10'
sweep: $(VENV)/ready
	@tools/need strace:strace
	@$(BIN)/python -m tests.sweep $(SWEEP)

# Generate docs/images/*.svg from real runs, as root.
screenshots: $(VENV)/ready
	@tools/need haproxy:haproxy unshare:util-linux ip:iproute2
	@$(BIN)/python -m tools.screenshots

# The fuzzing is guided by coverage if atheris can be installed (tests/fuzz/decoder.py).
fuzz: $(VENV)/ready
	@test -d $(VENV)/fuzz || $(BIN)/pip install --quiet --disable-pip-version-check --target $(VENV)/fuzz 'atheris>=3.0' || \
		echo 'atheris cannot be installed here: going on without it'
	@PYTHONPATH=$(VENV)/fuzz $(BIN)/python -m tests.fuzz.decoder --runs 1000000
	@$(BIN)/python -m tests.fuzz.server --runs 100000

# A guarded binder and two HAProxy under load, while random things fail: as root, make chaos SEED=7 MINUTES=20
SEED ?= $(shell date +%s)
MINUTES ?= 5
chaos: $(VENV)/ready
	@tools/need haproxy:haproxy setpriv:util-linux
	@$(BIN)/python -m tests.chaos --seed $(SEED) --minutes $(MINUTES)

# The lock files name each package that is installed, with its hash. Only sdnotify is built here, by the setuptools of
# the first lock file, because it is published only as source. '--clear' removes packages that are no longer locked.
$(VENV)/ready: pyproject.toml $(LOCKS)
	@$(PYTHON) -c 'import sys; sys.exit("multibinder needs Python 3.11 or later, this is " + sys.version if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || tools/need ensurepip:python3-venv
	@$(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) --require-hashes --only-binary :all: -r requirements-build.lock
	@$(INSTALL) --require-hashes --only-binary :all: --no-binary sdnotify -r requirements-dev.lock
	@$(INSTALL) --no-deps --editable .
	@touch $@

# Update the lock files after a change of pyproject.toml, for every Python from 3.11 on. Versions that still fit stay,
# unless UPGRADE=1. Only uv resolves for several Pythons at once. Only this target needs it, so it is not locked itself.
lock:
	@directory=$$(mktemp -d) && trap 'rm -rf "$$directory"' EXIT && \
		$(PYTHON) -m venv "$$directory" && \
		"$$directory/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: uv==0.13.9 && \
		set -- "$$directory/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
			$(if $(UPGRADE),--upgrade) --custom-compile-command 'make lock' && \
		"$$@" --extra dev --output-file requirements-dev.lock pyproject.toml && \
		echo setuptools | "$$@" --constraint requirements-dev.lock --output-file requirements-build.lock - && \
		"$$@" --output-file tests/frameworks/requirements.lock tests/frameworks/requirements.txt && \
		"$$@" --output-file tests/daemons/requirements.lock tests/daemons/requirements.txt

clean:
	rm -rf $(VENV) .hypothesis .mypy_cache .ruff_cache .pytest_cache
