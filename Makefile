# Every target sets up what it needs in .venv (or .venv-extras), from a fresh clone, with python3.11+ and its venv.
# PYTHON=python3.12 make test    takes another interpreter;  PYTEST_ARGS="-k attention" make test    adds arguments.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PYTEST_ARGS ?=

.PHONY: help demo test test-extras test-slow lint bench clean

help:
	@echo "make demo         train a model that pronounces English words, and show what it says"
	@echo "make test         the tests"
	@echo "make test-slow    the long tests"
	@echo "make test-extras  the tests that need seqio with its TensorFlow or tokenizers, in an environment of their own"
	@echo "make lint         ruff and pyright"
	@echo "make bench        the benchmarks"

demo: .venv/demo.stamp
	.venv/bin/python -m flaxformer.demo.g2p

test: .venv/test.stamp
	.venv/bin/python -m pytest -n 2 -m "not slow and not extras" $(PYTEST_ARGS)

test-slow: .venv/test.stamp
	.venv/bin/python -m pytest -n 2 -m "slow and not extras" $(PYTEST_ARGS)

test-extras: .venv-extras/test,seqio,tokenizers.stamp
	.venv-extras/bin/python -m pytest -m extras $(PYTEST_ARGS)

lint: .venv/lint.stamp
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m ruff check .
	.venv/bin/python -m pyright --pythonpath .venv/bin/python

bench: .venv/benchmarks.stamp
	.venv/bin/python -m benchmarks.attention
	.venv/bin/python -m benchmarks.decode
	.venv/bin/python -m benchmarks.step_time

clean:
	rm -rf .venv .venv-extras build dist *.egg-info

# ENVIRONMENT/EXTRAS.stamp: the environment exists and the package is installed in it, editable, with these extras.
.PRECIOUS: %/pyvenv.cfg
%/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "No python3.11 or later with venv was found; set PYTHON=/path/to/python." >&2; exit 1; }
	$(PYTHON) -m venv $*

define install
.PRECIOUS: $(1)/%.stamp
$(1)/%.stamp: setup.py pyproject.toml | $(1)/pyvenv.cfg
	@echo "Installing flaxformer[$$*] into $(1): a few minutes, once."
	$(1)/bin/python -m pip install --disable-pip-version-check --quiet --editable ".[$$*]"
	@touch $$@
endef
$(eval $(call install,.venv))
$(eval $(call install,.venv-extras))
