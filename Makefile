# Everything this project does, by name. `make` alone lists it.
PYTHON ?= python3.11
VENV ?= .venv
BIN = $(VENV)/bin
FLOWER ?= _build/flower-venv
PROFILE ?= quick

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 14

# torch comes first, in a command of its own: where a local CPU wheel is on offer, pip then takes it.
$(VENV)/.ok: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q torch==2.13.0
	$(BIN)/pip install -q -c constraints.txt -e '.[book,test,live,rware]'
	@touch $@

# Flower in an environment of its own: what a client's machine installs, and nothing of the book's.
$(FLOWER)/.ok: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(FLOWER)
	$(FLOWER)/bin/pip install -q torch==2.13.0
	$(FLOWER)/bin/pip install -q -c constraints.txt -e '.[federated]' pytest
	@touch $@

book: $(VENV)/.ok  ## build the book into _build/html and check every page (PROFILE=paper for the published parameters)
	$(BIN)/fedmorl book --profile $(PROFILE)

test: $(VENV)/.ok  ## run every test that needs no outside service, and every notebook
	$(BIN)/pytest -n 2 --nbmake --nbmake-timeout=300 -m 'not ns3 and not slurm and not flower'

test-all: $(VENV)/.ok $(FLOWER)/.ok  ## `make test`, what needs an extra (ns-3, Slurm, Flower), and a sweep that is killed 20 times
	$(BIN)/pip install -q -c constraints.txt -e '.[ns3,cluster]'
	FEDMORL_KILLS=20 $(BIN)/pytest --nbmake --nbmake-timeout=300 -m 'not flower'
	$(FLOWER)/bin/python -m pytest -m flower tests/test_flower.py

lab: $(VENV)/.ok  ## open the live explorer in JupyterLab
	$(BIN)/jupyter lab notebooks/channel/explorer.ipynb

bench: $(VENV)/.ok  ## measure kernels and sweeps beside their peers; rows go to results/benchmarks.csv
	$(BIN)/python benchmarks/run.py

lint: $(VENV)/.ok  ## ruff, types, stripped notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/nbstripout --keep-id --verify $$(git ls-files '*.ipynb')

clean:  ## remove everything that was built (not the virtual environment)
	rm -rf _build

.PHONY: help book test test-all lab bench lint clean
