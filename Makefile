# Each target works as the first command on a machine that has only Python 3.11+, venv and make.

PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv/oldest
TOOLS_OF_docs := latex2mathml mkdocs-material
TOOLS_OF_audit := build cyclonedx-bom pip-audit pip-licenses

.PHONY: demo test slow oldest fuzz soak bench docs audit image dist venv clean

demo: venv
	rm -rf demo-out
	$(BIN)/distill demo --out demo-out

test: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --config-file benchmarks/mypy.ini benchmarks docs deploy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

# Ray clusters that lose nodes, commands stopped at every moment, a hundred thousand images: minutes.
slow: venv
	$(BIN)/pytest -n 2 --dist worksteal -m slow

# The unit tests with the oldest versions of everything that pyproject.toml allows.
oldest: venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear $(OLDEST)
	$(BIN)/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct '.[arrow,charts,detect,hf,near,otel,ray,real,s3,video]'
	$(BIN)/uv pip install --quiet --python $(OLDEST) beartype hypothesis pytest
	$(OLDEST)/bin/python -m pytest -o addopts=--import-mode=importlib -o filterwarnings=default tests/unit

# 10⁵ hostile requests of each kind against a live teacher server: half an hour or so.
fuzz: venv
	DISTILL_FUZZ=100000 $(BIN)/pytest -n 2 tests/property/test_live_fuzz.py

# Five minutes of good and bad requests, and five of attacks beside a student that trains: memory, permits
# and its images/s must stay where they are.
soak: venv
	$(BIN)/python benchmarks/serving.py --quick --soak 300

# All benchmarks in their quick form, half an hour or so on two cores: a report in bench-out, and what got slower.
bench: venv
	$(BIN)/python benchmarks/suite.py

# The site, strictly: a link that leads nowhere is an error.
docs: .venv/docs
	$(BIN)/python docs/site.py

# Known vulnerabilities, where a database can be reached; licences; a bill of materials (CycloneDX).
audit: venv .venv/audit
	$(BIN)/python deploy/audit.py audit-out

# The container's image by buildah, and the demo in it; as root, 30 GB, ten minutes.
image:
	sh deploy/container/try.sh $(BUILDAH)

dist: .venv/audit
	rm -rf dist
	$(BIN)/python -m build

venv: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/docs .venv/audit: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(TOOLS_OF_$(@F))
	touch $@

clean:
	rm -rf .venv build dist site audit-out bench-out demo-out .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
