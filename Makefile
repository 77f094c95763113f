# Everything runs in .venv, which `make setup` fills from pyproject.toml at the versions in constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO := runs/demo
SUDOKU := runs/sudoku_6x6

# Of speedrun-sudoku, to be given as NAME=VALUE: the configuration, per cent to reach, and where they are wanted minutes
# on the clock, a folder with train.csv and test.csv, and more options and settings.
CONFIG := configs/speedrun_sudoku.yaml
TARGET := 85
MINUTES :=
SUDOKU_CSV :=
OPTIONS :=

.PHONY: setup demo speedrun-sudoku test test-full lint clean-demo

setup: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Sudokus that it has not seen, then ARC tasks to an ARC submission file, with a report of each: about five minutes on
# two quiet cores. Interrupt it, and it goes on; `make clean-demo` takes away what an older version has left.
demo: setup
	$(BIN)/python -m hrm_dist.train configs/small/sudoku_6x6.yaml
	$(BIN)/python -m tools.show $(SUDOKU)/checkpoints/latest --data data/sudoku-6x6
	$(BIN)/python -m tools.evaluate $(SUDOKU)/checkpoints/latest --data data/sudoku-6x6 --every-segment \
		--out $(SUDOKU)/predictions
	$(BIN)/python -m tools.report $(SUDOKU) --title "hrm-dist demo: Sudokus" --out $(SUDOKU)/report.html
	$(BIN)/python -m hrm_dist.train configs/demo.yaml
	$(BIN)/python -m tools.evaluate $(DEMO)/checkpoints/latest --data data/demo --every-segment \
		--out $(DEMO)/predictions
	$(BIN)/python -m tools.vote $(DEMO)/predictions --data data/demo --subsets configs/demo_subsets.json \
		--out $(DEMO)/submission.json --scores $(DEMO)/scores.json
	$(BIN)/python -m tools.check_submission $(DEMO)/submission.json --tasks data/demo
	$(BIN)/python -m tools.report $(DEMO) --subsets configs/demo_subsets.json --title "hrm-dist demo: ARC tasks" \
		--out $(DEMO)/report.html

clean-demo:
	rm -rf data/demo $(DEMO) data/sudoku-6x6 $(SUDOKU)

# Train on one GPU until a stated share of held-out Sudokus is solved, and write down how long it took: docs/speedruns.
# Interrupt it, and it goes on.
speedrun-sudoku: setup
	$(BIN)/python -m tools.speedrun $(CONFIG) --target $(TARGET) $(if $(MINUTES),--budget-min $(MINUTES)) \
		$(foreach path,$(SUDOKU_CSV),--csv $(path)) $(OPTIONS)

# Two worker processes of one thread each are faster than one of two on the tests' tiny models.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

# All engines on all numbers of processes too, as a single part of the matrix rarely fails alone.
test-full: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope -m "full or not full"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
