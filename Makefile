# Each target works on a fresh machine with Python 3.11 or newer. All paths are relative, so that a directory
# with a space in its name works. PYTHON=/path/to/python chooses the interpreter; pip reads its own variables
# (PIP_INDEX_URL, …).

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.groundtune-ready
TOOLS := $(VENV)/.groundtune-tools
GROUNDTUNE := $(PY) -m groundtune.cli
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

# One worker per core and one torch thread per worker; the tests of a file stay in one worker.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(PY) -m pytest -q -n logical --maxprocesses 8 --dist loadfile

# MMDetection and transformers, for make bench only.
PEERS := .peers

DEMO_DATA := demo/scenes
# Shapes that the pretraining of nano never used.
DEMO_CLASSES := red crescent,navy gear,yellow lightning bolt,green key,purple umbrella,brown mushroom,orange guitar,blue crown

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-gpu lint audit docs bench install clean

help:
	@echo "make demo      fine-tune nano on generated images; ends with AP before and after, and a report"
	@echo "make test      run the fast tests"
	@echo "make test-all  run all tests, including the slow ones"
	@echo "make test-gpu  compare a GPU with the CPU (two minutes)"
	@echo "make lint      run ruff and mypy"
	@echo "make audit     check the pinned packages for known vulnerabilities"
	@echo "make docs      build the documentation site in build/site"
	@echo "make bench     compare time and memory with MMDetection and transformers (built in $(PEERS))"
	@echo "make install   create .venv (the other targets do it if necessary)"
	@echo "make clean     remove .venv and the generated images; run directories stay"

install: $(READY) $(TOOLS)

demo: $(READY)
	@if [ -d "$(DEMO_DATA)" ]; then \
	    echo "==> Using the generated images in $(DEMO_DATA)"; \
	else \
	    echo "==> Generating images of objects that nano has never seen in $(DEMO_DATA)"; \
	    $(GROUNDTUNE) init scenes "$(DEMO_DATA)" --classes "$(DEMO_CLASSES)"; \
	fi
	@echo "==> groundtune train $(DEMO_DATA)   (run directories: runs/scenes-nano, runs/scenes-nano-2, ...)"
	@$(GROUNDTUNE) train "$(DEMO_DATA)"
	@run=$$(ls -td runs/scenes-nano* | head -n 1); \
	echo "==> groundtune predict $$run $(DEMO_DATA)/valid --output-dir $$run/images"; \
	$(GROUNDTUNE) predict "$$run" "$(DEMO_DATA)/valid" --output-dir "$$run/images" > /dev/null && \
	echo "==> Annotated images: $$run/images" && \
	echo "==> Report: $$run/report.html" && \
	echo "==> With your own data: .venv/bin/groundtune train DATA"

test: $(TOOLS)
	@echo "==> Running the tests (slow ones: make test-all)"
	@$(PYTEST)

test-all: $(TOOLS)
	@echo "==> Running all tests, including the slow ones"
	@$(PYTEST) -m "not gpu"

test-gpu: $(TOOLS)
	@echo "==> Comparing the GPU with the CPU"
	@$(PY) -m pytest -q -rs -m gpu tests/gpu

lint: $(TOOLS)
	@echo "==> ruff"
	@$(PY) -m ruff check .
	@echo "==> mypy"
	@$(PY) -m mypy

audit: $(TOOLS)
	@echo "==> pip-audit"
	@$(PY) .ci/audit.py

docs: $(READY)
	@$(PIP) -e ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict
	@echo "==> The site is in build/site/index.html"

bench: $(READY)
	@if [ ! -x "$(PEERS)/hf/bin/python" ]; then \
	    if [ ! -f ../shared/peers/setup.sh ]; then \
	        echo "make bench needs the peers: make bench PEERS=DIR, where DIR has mmdet/, hf/ and bench/" >&2; exit 1; \
	    fi; \
	    echo "==> Building the peers in $(PEERS) (a few minutes)"; \
	    bash ../shared/peers/setup.sh "$(PEERS)"; \
	fi
	@$(PY) benchmarks/run.py --peers "$(PEERS)"

$(READY): pyproject.toml constraints.txt
	@if ! $(PY) -c "import pip" 2>/dev/null; then \
	    found=; \
	    for candidate in "$(PYTHON)" python3.12 python3.11 python3.13 python3 python; do \
	        if [ -n "$$candidate" ] && "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	            found=$$candidate; break; \
	        fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "groundtune needs Python 3.11 or newer with its venv module, and found none that runs." >&2; \
	        echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
	        exit 1; \
	    fi; \
	    echo "==> Creating $(VENV) with $$found ($$("$$found" --version))"; \
	    "$$found" -m venv --clear $(VENV); \
	fi
	@echo "==> Installing groundtune, PyTorch and the weights of nano (one to several minutes the first time)"
	@$(PIP) -e .
	@touch $(READY)

# Packages for tests and checks, and all optional packages.
$(TOOLS): $(READY)
	@echo "==> Installing the tools and the optional packages"
	@$(PIP) -e ".[test,dev,docs,demo,onnx,openvino,ray]"
	@touch $(TOOLS)

clean:
	rm -rf $(VENV) "$(DEMO_DATA)"
