# The two commands a newcomer needs:
#   make demo   adapts the shipped point-cloud transformer to the embedded clouds: linear probe, then DAPT-X
#   make test   runs the tests
# make test-all also runs those that take long: every method and precision where make test takes one of a kind, the CUDA
# kernels in an emulator, tests under sanitizers, and without each optional package and program.
# Each sets up $(VENV) by itself. Needed: Python >= 3.10 with venv, make; a C++20 compiler makes the point ops fast.
# A CPU build of torch:  make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"

VENV   ?= .venv
PYTHON ?= python3
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check
SOURCES := pyproject.toml setup.py $(shell find extensions -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.cuh')

# Models of timm need torchvision, which needs its own torch.
FOREIGN       ?= .venv-foreign
TORCH_FOREIGN ?= torch==2.14.1 torchvision==0.29.1

.PHONY: demo test test-all test-foreign lint docs bench clean

demo: $(VENV)/.ready
	$(BIN)/python tools/main.py --config cfgs/demo_linear.yaml
	$(BIN)/python tools/main.py --config cfgs/demo.yaml

# One thread a process: idle threads of two processes on two cores would spin against each other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4

test: $(VENV)/.ready
	$(PYTEST) --dist loadfile -m "not exhaustive" --durations=20

test-foreign: $(VENV)/.ready $(FOREIGN)/.ready
	POINTADAPTERX_REQUIRE=timm OMP_NUM_THREADS=1 $(FOREIGN)/bin/python -m pytest -n auto --maxprocesses 4 -m timm \
		tests/adapting tests/docs/test_adapt.py

test-all: test test-foreign
	$(PYTEST) --dist load -m exhaustive --durations=20
	$(BIN)/python tests/absent
	$(BIN)/python tests/sanitized

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as web pages, in build/docs/index.html; a warning is an error.
docs: $(VENV)/.ready
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs build/docs
	@echo "written: build/docs/index.html"

PUBLISHED_SIZE = backbone.weights=null $(addprefix backbone.,dim=384 depth=12 num_heads=6 encoder_dim=384 encoder_width=128 num_groups=128 group_size=32) data.num_points=2048
METHODS = $(addprefix scan_pb_t50_rs,_dapt _full _linear _bitfit _vpt _lora _ssf _adapter _adaptformer _noah _idpt _stag \
	_adapter_x _adaptformer_x) scan_pb_t50_rs $(addprefix scan_pb_t50_rs,_e3va _e3va_x)

# For a machine that does nothing else: writes tables of speed and memory to docs/results.
bench: $(VENV)/.ready
	$(PIP) --no-build-isolation -e ".[bench]"
	$(BIN)/python -m benchmarks exactness
	$(BIN)/python -m benchmarks ops --simd avx512 avx2 --output docs/results/speed
	$(BIN)/python -m benchmarks train --floor --output docs/results/training_cost
	$(BIN)/python -m benchmarks train --system-allocator --output docs/results/training_cost_system
	$(BIN)/python -m benchmarks train --batch-size 8 --rounds 3 --jobs $(METHODS) $(addsuffix @bf16,$(METHODS)) --output docs/results/training_methods
	$(BIN)/python -m benchmarks dense --threads 1 --output docs/results/dense_cost
	$(BIN)/python -m benchmarks propagation --threads 1 --output docs/results/propagation
	$(BIN)/python -m benchmarks infer --output docs/results/inference
	$(BIN)/python -m benchmarks memory --output docs/results/memory
	$(BIN)/python -m benchmarks busy --batch-size 8 --output docs/results/busy
	$(BIN)/python -m benchmarks peft --output docs/results/peft
	$(BIN)/python -m benchmarks curves --output docs/results/curves
	$(BIN)/python -m benchmarks predict --output docs/results/predicting
	$(BIN)/python -m benchmarks serve --seconds 60 --output docs/results/serving
	$(BIN)/python -m benchmarks predict --files 200 --rounds 2 $(PUBLISHED_SIZE) --output docs/results/predicting_published
	$(BIN)/python -m benchmarks curves --only experts --rounds 9 --output docs/results/experts

clean:
	rm -rf $(VENV) $(FOREIGN) build extensions/*.so extensions/build_info.json pointadapterx.egg-info

$(VENV)/.ready: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed; try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@echo "Setting up $(VENV): the first time takes some minutes, most of it for torch."
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) "setuptools>=77" wheel ninja numpy
	$(PIP) --no-build-isolation -e ".[dev]"
	@$(BIN)/python -c "from pointadapterx import ops; print('point ops:', ops.implementation('cpu'))"
	@touch $@

# The checkout as $(VENV) has it: compiled ops belong to one torch, and the plain ones do here.
$(FOREIGN)/.ready: pyproject.toml $(VENV)/.ready
	$(PYTHON) -m venv $(FOREIGN)
	$(FOREIGN)/bin/python -m pip install --quiet --disable-pip-version-check $(TORCH_FOREIGN)
	$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		extras = project["optional-dependencies"]; print(*project["dependencies"], *extras["hf"], *extras["dense2d"], *extras["viz"], sep="\n")' \
		> $(FOREIGN)/requirements.txt
	$(FOREIGN)/bin/python -m pip install --quiet --disable-pip-version-check -r $(FOREIGN)/requirements.txt \
		"pytest>=8" "pytest-timeout>=2.3" "pytest-xdist>=3.6"
	cp $(VENV)/lib/python3*/site-packages/__editable__*pointadapterx* $(FOREIGN)/lib/python3*/site-packages/
	@touch $@
