# `make demo` trains networks and draws a picture; `make test` runs every test. Each makes what it needs: a virtual
# environment in .venv with everything that pip can install, and system packages through apt-get where it may.

PYTHON ?= python3
TORCH ?= torch>=2.11,<2.14
VENV := .venv
PY := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
SOURCES := $(shell find csrc cuda -type f) CMakeLists.txt setup.py pyproject.toml

.PHONY: demo test bench lint clean
.DELETE_ON_ERROR:

# What pip cannot bring: the interpreter's venv module, a compiler, GoogleTest.
$(VENV)/.system:
	sh tests/system_packages.sh $(PYTHON)
	@mkdir -p $(VENV) && touch $@

$(VENV)/.tools: pyproject.toml | $(VENV)/.system
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check '$(TORCH)' numpy 'setuptools>=77' wheel 'cmake>=3.22' ninja
	touch $@

$(VENV)/.train: $(VENV)/.tools
	$(PY) -m pip install --quiet --disable-pip-version-check tqdm matplotlib scikit-learn pillow safetensors
	touch $@

$(VENV)/.test: $(VENV)/.train
	$(PY) -m pip install --quiet --disable-pip-version-check pytest hypothesis expecttest
	@# Other people's trainers; their tests are skipped by name where these cannot be had.
	-$(PY) -m pip install --quiet --disable-pip-version-check '$(TORCH)' transformers accelerate lightning \
	  pytorch-lightning tensorboard
	touch $@

$(VENV)/.built: $(SOURCES) | $(VENV)/.tools
	DENDNORM_BUILD_DIR=build/release DENDNORM_BUILD_TESTS=ON \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

# DATA=folder trains on the Fashion-MNIST or MNIST files that it holds.
demo: $(VENV)/.train $(VENV)/.built
	$(VENV)/bin/dendnorm train --out demo $(if $(DATA),--root '$(DATA)',--epochs 30) $(ARGS)

test: $(VENV)/.test $(VENV)/.built
	$(PY) tests/run_all.py

# SparseProp is a peer to measure against; the rest of the table stands without it.
bench: $(VENV)/.train $(VENV)/.built
	-$(PY) -m pip install --quiet --disable-pip-version-check scipy
	-$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps sparseprop
	cmake -S . -B build/bench -G Ninja -DCMAKE_BUILD_TYPE=Release -DDENDNORM_TORCH=OFF -DDENDNORM_BUILD_BENCHMARKS=ON
	cmake --build build/bench
	build/bench/roofline > build/bench/roofline.json
	$(VENV)/bin/dendnorm bench --roofline build/bench/roofline.json --out build/bench $(ARGS)

lint: $(VENV)/.tools
	$(PY) -m pip install --quiet --disable-pip-version-check ruff clang-format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $$(find csrc cuda tests/cpp benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu')

clean:
	rm -rf build demo $(VENV) python/*.egg-info python/dendnorm/*.so
