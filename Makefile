# Every target sets up what it needs: Python 3.10 or newer, network to PyPI, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint typecheck bench gpu-test lock clean setup

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/trtrun demo

test: setup
	$(BIN)/python -m pytest tests/unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/typecheck.py

bench: setup # needs a GPU
	$(BIN)/python benchmarks/run.py

gpu-test: setup # needs a GPU
	$(BIN)/python -m pytest tests/gpu --junitxml=.gpu-report.xml
	$(BIN)/python scripts/gpu_report.py write .gpu-report.xml

lock: # needs uv
	uv pip compile pyproject.toml --extra demo --group dev --group build --universal --python-version 3.10 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet --output-file requirements.lock

clean:
	rm -rf .venv .typecheck .mypy_cache .ruff_cache .pytest_cache .hypothesis trtrun-demo .gpu-report.xml
