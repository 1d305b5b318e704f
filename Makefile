# Each target makes .venv by itself; PYTHON picks the interpreter.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo demo-policy test check bench clean

demo: $(VENV)/.installed
	$(BIN)/palestra demo

# Seven minutes on one GPU, most of a day on two CPU cores. What it makes stands in src/palestra/policy/demo_policy.
POLICY ?= build/demo-policy
demo-policy: $(VENV)/.installed
	PYTHONPATH=tools $(BIN)/python -m demo_policy --out $(POLICY)
	$(BIN)/palestra eval "katas:heldout?seed=1&n=256&level=0" --agent mini --model $(POLICY) \
	    --prompt kata --step-limit 4 --max-tokens 80 --max-context 640 --concurrency 64 \
	    --out $(POLICY)-eval
	$(BIN)/python tools/demo_policy/measure.py $(POLICY)-eval

# As root this installs and starts container engines; otherwise it takes what is there.
test: $(VENV)/.installed
	tools/test_engines.sh $(BIN)/python -m pytest

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(VENV)/.installed
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar off -e '.[train,parquet,dev]'
	@# Miles' own types for the tests of its hooks, 8 MB; with what it depends on it would be gigabytes.
	$(BIN)/python -m pip install --progress-bar off --no-deps miles-rl==0.0.2
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
