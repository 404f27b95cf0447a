# make demo    train a language model on the Python language reference (about two minutes on two cores)
# make test    run the tests            make bench   measure against torch, JAX, ONNX Runtime and OpenVINO (minutes)
# make bench-full  every size and cell (hours)  make bench-scaling  how cost grows with T, B, H and threads (minutes)
# make results train every recipe on real data, write docs/results.md (hours; goes on where it stopped)
# make golden  rewrite the golden files make lint    check the style         make setup   install everything
#
# Everything is installed once, into .venv, and again only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
BIN = .venv/bin
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt

.PHONY: setup demo test bench bench-full bench-scaling results golden lint
setup: .venv/installed-all

.venv/made: constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gatework needs Python 3.11 or later; type: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	touch $@

.venv/installed-%: .venv/made pyproject.toml
	$(PIP_INSTALL) --editable ".[$*]"
	touch $@

demo: .venv/installed-recipes .venv/installed-cli
	rm -rf demo
	mkdir demo
	$(BIN)/python -c 'from pydoc_data.topics import topics; print("\n\n".join(topics.values()))' > demo/reference.txt
	$(BIN)/gatework train language-model demo/reference.txt --out demo/model --hidden 256 --epochs 10
	$(BIN)/gatework generate demo/model --prompt "The following" --length 200

# A process for each core, up to four. Threads that wait for work sleep, so that they leave the cores to the others.
test: .venv/installed-test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

golden: .venv/installed-test
	$(BIN)/python -m pytest tests --update-golden

lint: .venv/installed-test
	$(BIN)/ruff check .

# A few minutes; the full run takes hours, most of it in torch.compile, and draws docs/bench.png and .svg.
bench: .venv/installed-bench
	$(BIN)/python benchmarks/bench.py --quick

bench-full: .venv/installed-bench
	$(BIN)/python benchmarks/bench.py --json benchmarks/results.json
	$(BIN)/python benchmarks/chart.py benchmarks/results.json --out docs/bench

bench-scaling: .venv/installed-bench
	$(BIN)/python benchmarks/scaling.py --json benchmarks/scaling.json --out docs/scaling

# QUICK=--quick for small runs in minutes; ONLY="--only tag music" for some of the recipes.
results: .venv/installed-recipes
	$(BIN)/python benchmarks/make_results.py $(QUICK) $(ONLY)
