# Every target sets up what it needs: Python 3.10 or newer, network to PyPI, nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench docs gpu-test sanitize lock clean setup

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

# The scripts that need nothing but a machine with a GPU. One that fails does not keep the others from running. 200
# reloads take most of the four minutes that serve.py gives itself.
BENCHMARKS := run.py vision.py "serve.py overhead throughput shm overload" "serve.py reload" onnx_conformance.py

bench: setup # needs a GPU
	status=0; for script in $(BENCHMARKS); do $(BIN)/python benchmarks/$$script || status=1; done; \
	$(BIN)/python benchmarks/report.py || status=1; exit $$status

docs: setup # docs/performance.md and its plots from benchmarks/results/
	$(BIN)/python benchmarks/report.py

gpu-test: setup # needs a GPU
	$(BIN)/python -m pytest tests/gpu --junitxml=.gpu-report.xml
	$(BIN)/python scripts/gpu_report.py write .gpu-report.xml

sanitize: setup # needs a GPU, and compute-sanitizer of the CUDA toolkit
	$(BIN)/python scripts/sanitize.py

lock: # needs uv
	uv pip compile pyproject.toml --extra demo --group dev --group build --universal --python-version 3.10 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet --output-file requirements.lock

clean:
	rm -rf .venv .typecheck .mypy_cache .ruff_cache .pytest_cache .hypothesis trtrun-demo .gpu-report.xml
