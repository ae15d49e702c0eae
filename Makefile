# make demo   set up, then the whole job on a small built-in world: render, prepare, train, predict, score
# make test   set up, then the tests
# make check  set up, then format, lint and types
# make drill  set up, then kill a run of two processes 200 times and compare its result bit for bit (an hour)
# make drill-slurm  set up, then interrupt a run on a real, small Slurm on this machine 300 times (an hour); needs slurm-wlm
# make setup  the virtual environment alone
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python launch.py
DEMO := data/demo

.PHONY: setup demo test check drill drill-slurm
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

demo: setup
	$(RUN) world --out $(DEMO) --tiles 640 --size 256 --seed 0
	$(RUN) --cluster debug --encoder tu-resnet10t --recipe demo --data $(DEMO) --run demo

drill: setup
	$(RUN) drill --interruptions 200 --signal KILL --processes 2 --workers 2 --steps 400 --seed 0

drill-slurm: setup
	$(VENV)/bin/python -m tests.slurm.drill --interruptions 300 --steps 12000 --seed 0

test: setup
	$(VENV)/bin/python -m pytest -n auto

check: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy agl_core jobs launch.py benchmarks
