# `make demo` and `make test` each work as the only command on a fresh machine with Python >= 3.10.
PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo
WORKERS ?= 2
PIP = -m pip --disable-pip-version-check --quiet
KERNEL = CMakeLists.txt $(wildcard mambair_cli/scan/*.cpp mambair_cli/scan/*.hpp)

.PHONY: demo gpu test lint types pytest kernel wheel format clean

demo: $(DEMO_VENV)/.installed
	$(DEMO_VENV)/bin/mambair upscale -s 4 --force docs/sample.png -o demo/sample_x4.png
	$(DEMO_VENV)/bin/mambair compare docs/sample.png demo/sample_x4.png --force -o demo/compare.html
	@echo
	@echo "The restored picture is demo/sample_x4.png; open demo/compare.html to see before and after."

$(DEMO_VENV)/.installed: pyproject.toml constraints.txt weights.toml $(KERNEL) $(shell find mambair_cli -name '*.py')
	test -d $(DEMO_VENV) || $(PYTHON) -m venv $(DEMO_VENV)
	$(DEMO_VENV)/bin/python $(PIP) install -c constraints.txt .
	touch $@

test: lint types pytest

$(VENV)/.installed: pyproject.toml constraints.txt $(KERNEL)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) install -c constraints.txt -e '.[test,dev]'
	# Without torchvision, which it asks for: tests/test_spandrel.py says why.
	$(VENV)/bin/python $(PIP) install --no-deps spandrel einops
	touch $@

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports

types: $(VENV)/.installed
	$(VENV)/bin/mypy

pytest: $(VENV)/.installed
	$(VENV)/bin/pytest -n $(WORKERS) --dist loadfile

# All checks and timings on a CUDA device; without one it says so, with status 3.
gpu: $(VENV)/.installed
	$(VENV)/bin/python tools/gpu --out docs/gpu.md

wheel:
	tools/wheel.sh $(PYTHON)

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) $(DEMO_VENV) demo build dist
