# `make demo` compares networks and draws a picture; `make test` runs every test, `make test-fast` those to run after each
# edit; `make docs` makes the site. Each makes what it needs: a virtual environment in .venv with everything that pip can
# install, and system packages through apt-get where it may. CONTRIBUTING.md says more.

PYTHON ?= python3
# The latest that the whole suite has run on; TORCH="torch==2.14.*" names another.
TORCH ?= torch>=2.11,<2.14
VENV := .venv
PY := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# ruff breaks the lines of signatures.
MKDOCS := 'mkdocs<2' mkdocs-material 'mkdocstrings[python]' latex2mathml ruff
SOURCES := $(shell find csrc cuda -type f) CMakeLists.txt setup.py pyproject.toml

# The build with CUDA is checked wherever there is nvcc, in an environment of its own: a GPU is not needed for that.
CUDA_VENV ?= .venv-cuda
CUDA_TORCH ?= torch==2.11.0
NVCC := $(firstword $(CUDACXX) $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc))

# What `make wheel` builds for; one environment each, in build/wheel.
WHEEL_TORCHES ?= 2.11 2.12 2.13 2.14
WHEEL_ENVS := $(WHEEL_TORCHES:%=build/wheel/env-%)

.PHONY: demo test test-fast reliability bench docs gpu-check lint wheel wheel-check sdist sdist-check compilers clean
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
	-$(PY) -m pip install --quiet --disable-pip-version-check pytest-xdist
	@# Other people's trainers, optimizers and exporters, and the site; their tests are skipped by name where these cannot be had.
	-$(PY) -m pip install --quiet --disable-pip-version-check '$(TORCH)' transformers accelerate lightning \
	  pytorch-lightning tensorboard
	-$(PY) -m pip install --quiet --disable-pip-version-check '$(TORCH)' bitsandbytes torchao schedulefree peft onnx \
	  onnxscript onnxruntime
	-$(PY) -m pip install --quiet --disable-pip-version-check $(MKDOCS)
	touch $@

# Without PyTorch: the site is made from the sources.
$(VENV)/.docs: pyproject.toml | $(VENV)/.system
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(MKDOCS)
	touch $@

$(VENV)/.built: $(SOURCES) | $(VENV)/.tools
	DENDNORM_BUILD_DIR=build/release DENDNORM_BUILD_TESTS=ON \
	  $(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

# DATA=folder trains on the Fashion-MNIST or MNIST files that it holds.
demo: $(VENV)/.train $(VENV)/.built
	$(VENV)/bin/dendnorm demo --out demo --overwrite $(if $(DATA),--root '$(DATA)') $(ARGS)

# About 5 GB, once. A failure is run_all's to report: the other tests run all the same.
$(CUDA_VENV)/.ready:
	test -x $(CUDA_VENV)/bin/python || $(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check '$(CUDA_TORCH)' numpy pytest hypothesis \
	  expecttest 'cmake>=3.22' ninja nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm
	$(CUDA_VENV)/bin/python -c "import sys, torch; \
	  sys.exit(None if torch.version.cuda else f'PyTorch {torch.__version__} has no CUDA: set CUDA_TORCH= to one that has')"
	touch $@

test: $(VENV)/.test $(VENV)/.built
	$(if $(NVCC),-$(MAKE) --no-print-directory $(CUDA_VENV)/.ready)
	DENDNORM_NVCC='$(NVCC)' DENDNORM_CUDA_ENV='$(abspath $(CUDA_VENV))' $(PY) tests/run_all.py

# The tests of Python that take less than a second or two each (conftest.py says which do not), side by side where
# pytest-xdist can be had. ARGS="-k norms" narrows them.
test-fast: $(VENV)/.test $(VENV)/.built
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m 'not slow' \
	  $$($(PY) -c 'import xdist' 2>/dev/null && echo -n 2 --dist worksteal) tests/python $(ARGS)

# The long forms behind docs/reliability.md, under three hours on two cores; goes on where it was stopped. ARGS="saving bits"
# measures some of the lines.
reliability: $(VENV)/.test $(VENV)/.built
	PYTHONPATH=python:tests:tests/python $(PY) -m reliability run $(ARGS)

# Everything that needs a GPU, with what the current Python has: no environment, no network.
gpu-check:
	$(PYTHON) tests/gpu/check.py $(ARGS)

# The site of the documentation, in build/site.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "Written to build/site: open build/site/index.html, or, to search, serve it: python3 -m http.server -d build/site"

# SparseProp is a peer to measure against; the rest of the table stands without it.
bench: $(VENV)/.train $(VENV)/.built
	-$(PY) -m pip install --quiet --disable-pip-version-check scipy
	-$(PY) -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps sparseprop
	cmake -S . -B build/bench -G Ninja -DCMAKE_BUILD_TYPE=Release -DDENDNORM_TORCH=OFF -DDENDNORM_BUILD_BENCHMARKS=ON
	cmake --build build/bench
	build/bench/roofline > build/bench/roofline.json
	$(VENV)/bin/dendnorm bench --roofline build/bench/roofline.json --out build/bench --overwrite $(ARGS)

build/wheel/env-%/.ready: | $(VENV)/.system
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check 'torch==$*.*' numpy 'setuptools>=77' wheel \
	  'cmake>=3.22' ninja pytest hypothesis expecttest
	touch $@

# One file for all of WHEEL_TORCHES, in build/wheel/dist.
wheel: $(WHEEL_ENVS:%=%/.ready)
	$(firstword $(WHEEL_ENVS))/bin/python tests/build_wheel.py build/wheel $(WHEEL_ENVS:%=%/bin/python)

# Installs that file for each of them and runs the core of the suite on it.
wheel-check: $(WHEEL_ENVS:%=%/.ready)
	$(PYTHON) tests/check_wheel.py build/wheel/dist/*.whl $(WHEEL_ENVS:%=%/bin/python)

# The sources as one file, in build/sdist.
build/sdist/env/.ready: | $(VENV)/.system
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check 'setuptools>=77'
	touch $@

sdist: build/sdist/env/.ready
	rm -f build/sdist/*.tar.gz
	$(<D)/bin/python -c "from setuptools import build_meta; build_meta.build_sdist('build/sdist')" > build/sdist/log.txt

# Builds it without a network, against the PyTorch of .venv, and trains a network with what came out.
sdist-check: sdist $(VENV)/.tools
	$(PY) tests/check_sdist.py build/sdist/*.tar.gz

# What needs no PyTorch, with every compiler that is here, aarch64's too. ARGS="g++-11 clang++-14" tries some.
compilers: $(VENV)/.tools
	$(PY) tests/check_compilers.py build/compilers $(ARGS)

lint: $(VENV)/.tools
	$(PY) -m pip install --quiet --disable-pip-version-check ruff clang-format mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $$(find csrc cuda tests benchmarks examples -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

clean:
	rm -rf build demo $(VENV) .venv-cuda python/*.egg-info python/dendnorm/*.so python/dendnorm/lib \
	  python/dendnorm/include python/dendnorm/share
