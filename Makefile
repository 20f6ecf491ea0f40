# `make demo` and `make test` set everything up by themselves; a second run reinstalls nothing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-oldest check bench default-bundle default-response-bundle wheel clean

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mlpm-guard needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Choose another with: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/python examples/quickstart.py

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# The integrations' tests on the oldest versions that the extras allow, laid over what is installed.
test-oldest: $(STAMP)
	rm -rf $(VENV)/oldest
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/oldest langchain==1.4.0 langchain-core==1.6.0
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -c 'import langchain, langchain_core; print(langchain.__version__, langchain_core.__version__)'
	PYTHONPATH=$(VENV)/oldest $(BIN)/python -m pytest tests/langchain
	rm -rf $(VENV)/oldest-llama-index
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/oldest-llama-index llama-index-core==0.14.9
	PYTHONPATH=$(VENV)/oldest-llama-index $(BIN)/python -m pytest tests/llama_index

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/fit.py
	$(BIN)/python benchmarks/streaming.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/guarded_queries.py
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/drift.py
	$(BIN)/python benchmarks/langchain_gate.py
	$(BIN)/python benchmarks/novelty.py
	$(BIN)/python benchmarks/categories.py

# Refit a shipped bundle from a data folder: make default-bundle MLPM_GUARD_DATA=/path/to/data
default-bundle: $(STAMP)
	$(BIN)/python mlpm_guard/bundles/fit_default.py

default-response-bundle: $(STAMP)
	$(BIN)/python mlpm_guard/bundles/fit_default_response.py

wheel: $(STAMP)
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache
