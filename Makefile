# Everything a newcomer needs: `make demo` runs the main job, `make test` passes the tests.
# Needs Python 3.11 or newer, git and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: demo test check bench speed report slow install install-dev demo-model

# Stamps: installed again when the project's metadata or the task files change.
$(VENV)/run.stamp: pyproject.toml constraints.txt $(wildcard packaging/*)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	$(PIP) --editable ".[dev]"
	touch $@

install: $(VENV)/run.stamp
install-dev: $(VENV)/dev.stamp

# The stock harness on the small checkpoint that ships with the package.
demo: $(VENV)/run.stamp
	HF_HUB_OFFLINE=1 $(BIN)/lm_eval --model exl2 --model_args pretrained=demo \
		--tasks exl2_demo --device cpu

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Fresh virtual environments and thousands of cases: minutes, not seconds.
slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q -m "slow and not gpu and not network"

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python benchmarks/readme.py --check

# Writes benchmarks/results/ and the README's tables; DATA, MODELS, REFERENCE and GOLDEN name
# real benchmark data where you have it.
bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/parity.py $(if $(REFERENCE),--reference $(REFERENCE)) \
		$(if $(MODELS),--models $(MODELS)) $(if $(DATA),--data $(DATA)) \
		$(if $(GOLDEN),--golden $(GOLDEN))
	$(BIN)/python benchmarks/readme.py

# Is a small model still good enough? The worked example of the README, in minutes.
report: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/report.py
	$(BIN)/python benchmarks/readme.py

# The same for speed: an hour or two. Needs DATA; MODELS is where the checkpoint goes.
speed: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/run_all.py --data $(DATA) --models $(MODELS)

# Trains the demo checkpoint again and quantizes it.
demo-model: $(VENV)/dev.stamp
	$(BIN)/python -m lm_eval_exl2.demo.train --output lm_eval_exl2/demo/checkpoints
