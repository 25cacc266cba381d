# make demo, make test: alone, on a fresh machine with Python 3.11 or newer. All paths are relative, so that a folder with
# a space in its name works. PYTHON=/path/to/python chooses the interpreter; pip's own variables (PIP_INDEX_URL, …) hold.

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.groundtune-ready
TOOLS := $(VENV)/.groundtune-tools
GROUNDTUNE := $(PY) -m groundtune.cli
PIP := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

# MMDetection and transformers, for make bench only.
PEERS := .peers

DEMO_DATA := demo/scenes
# Shapes that the pretraining of nano never drew or named.
DEMO_CLASSES := red crescent,navy gear,yellow lightning bolt,green key,purple umbrella,brown mushroom,orange guitar,blue crown

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all lint audit docs bench install clean

help:
	@echo "make demo      fine-tune the model nano on generated images, to a table of AP and a run folder"
	@echo "make test      run the tests"
	@echo "make test-all  run the slow tests too"
	@echo "make lint      run ruff and mypy"
	@echo "make audit     look the pinned packages up in the databases of known vulnerabilities"
	@echo "make docs      build the API reference in docs/api"
	@echo "make bench     compare time and memory with MMDetection and transformers (builds them in $(PEERS))"
	@echo "make install   only set up .venv (the others do it themselves)"
	@echo "make clean     remove .venv and the generated images; run folders stay"

install: $(READY) $(TOOLS)

demo: $(READY)
	@if [ -d "$(DEMO_DATA)" ]; then \
	    echo "==> The generated images are in $(DEMO_DATA) already."; \
	else \
	    echo "==> Generating images in $(DEMO_DATA): drawn by a program, of things that nano never saw."; \
	    $(GROUNDTUNE) init scenes "$(DEMO_DATA)" --classes "$(DEMO_CLASSES)"; \
	fi
	@echo "==> groundtune train $(DEMO_DATA)   (run folders: runs/scenes-nano, runs/scenes-nano-2, ...)"
	@$(GROUNDTUNE) train "$(DEMO_DATA)"
	@run=$$(ls -td runs/scenes-nano* | head -n 1); \
	echo "==> groundtune predict $$run $(DEMO_DATA)/valid --output-dir $$run/images"; \
	$(GROUNDTUNE) predict "$$run" "$(DEMO_DATA)/valid" --output-dir "$$run/images" > /dev/null && \
	echo "==> Images with what it finds: $$run/images. The whole run on one page: $$run/report.html" && \
	echo "==> That was on generated images. On your own: .venv/bin/groundtune train FOLDER"

test: $(TOOLS)
	@echo "==> Running the tests (slow ones: make test-all)"
	@$(PY) -m pytest -q

test-all: $(TOOLS)
	@echo "==> Running all tests, the slow ones too"
	@$(PY) -m pytest -q -m "not gpu"

lint: $(TOOLS)
	@echo "==> ruff"
	@$(PY) -m ruff check .
	@echo "==> mypy"
	@$(PY) -m mypy

audit: $(TOOLS)
	@echo "==> pip-audit"
	@$(PY) .ci/audit.py

docs: $(TOOLS)
	@$(PY) docs/build_api.py docs/api
	@echo "==> The API reference is in docs/api/groundtune.html"

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

# What tests and checks need more, with everything that is optional.
$(TOOLS): $(READY)
	@echo "==> Installing the tools and the optional packages"
	@$(PIP) -e ".[test,dev,docs,demo,onnx,openvino,ray]"
	@touch $(TOOLS)

clean:
	rm -rf $(VENV) "$(DEMO_DATA)"
