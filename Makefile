# Every target does all the set-up it needs, on a machine with Python 3.11, make and gcc.
# Nothing is written outside this folder but the package cache.

PYTHON ?= python3.11
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := .venv/bin/
export TF_CPP_MIN_LOG_LEVEL ?= 3
# Keras and matplotlib write settings where they start: not in the user's home.
export KERAS_HOME ?= $(CURDIR)/.venv/var/pocketfed/keras
export MPLCONFIGDIR ?= $(CURDIR)/.venv/var/pocketfed/matplotlib
# Further runtimes, each a Python with an interpreter: exports are tested in them, and so are the layers.
LITERT := $(CURDIR)/.venv/litert
export POCKETFED_RUNTIMES ?= $(LITERT)/bin/python
# TensorFlow takes a minute to import where Python may not keep what it compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test check test-data test-arm bench bench-setup fuzz clean

setup: .venv/.ready .venv/litert/.ready

.venv/.ready: pyproject.toml uv.lock | $(UV)
	$(UV) sync --frozen --python $(PYTHON)
	@touch $@

# ai-edge-litert needs another NumPy than TensorFlow: an environment of its own, inside of .venv.
.venv/litert/.ready: runtimes/litert/pyproject.toml runtimes/litert/uv.lock .venv/.ready
	UV_PROJECT_ENVIRONMENT=$(LITERT) $(UV) sync --frozen --project runtimes/litert --python $(PYTHON)
	@touch $@

# Where uv is missing, it goes into a virtual environment of its own.
.uv/bin/uv:
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

$(UV):

demo: setup
	$(RUN)pocketfed demo --out demo

test: setup
	$(RUN)pytest

# Tests on real data sets: make test-data POCKETFED_DATA_DIR=folder with mnist/
test-data: setup
	$(RUN)pytest -m data

# Tests on emulated ARM processors; needs Debian or Ubuntu with qemu-user-static, and no root.
test-arm: setup
	@$(RUN)python -m tests.arm.environment
	$(RUN)pytest -m arm tests/arm

check: setup
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy
	$(RUN)lint-imports

# All benchmarks; they are worth quoting from a machine that does nothing else meanwhile.
bench: setup bench-setup
	$(RUN)pocketfed bench export
	$(RUN)pocketfed bench simulate $(if $(POCKETFED_DATA_DIR),--data-dir "$(POCKETFED_DATA_DIR)/mnist")
	$(RUN)pocketfed bench codec $(if $(POCKETFED_DATA_DIR),--data-dir "$(POCKETFED_DATA_DIR)/mnist")

# Any bytes to the decoder of updates, for ten minutes. The corpus stays: another run goes on from it.
fuzz: .bench/fuzz/.ready
	.bench/fuzz/bin/python -m benchmarks.fuzz .bench/corpus -artifact_prefix=.bench/ -max_total_time=600

# What benchmarks measure against and nothing else needs.
bench-setup: .bench/pytorch/.ready .bench/fuzz/.ready

.bench/pytorch/.ready: benchmarks/requirements-pytorch.txt
	$(PYTHON) -m venv .bench/pytorch
	.bench/pytorch/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

.bench/fuzz/.ready: benchmarks/requirements-fuzz.txt
	$(PYTHON) -m venv .bench/fuzz
	.bench/fuzz/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

clean:
	rm -rf .venv .uv .bench .arm demo runs dist build
