# make        set up .venv and run the pipeline on params.yaml
# make test   set up .venv, check style and types, run the tests
# make quick  the fast tests, half a minute on one core, a minute on an older one
# make docs   build the site of docs/ into build/site; a dead link or anchor ends it
# make lock   write requirements.lock anew from the newest versions that pyproject.toml allows
#
# PYTHON=python3.12 make   chooses the interpreter, 3.11 or newer, that .venv is made with.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where no home folder is named, as in a pod, what tools keep there goes into .venv. One that cannot be written does no harm.
export HOME ?= $(CURDIR)/$(VENV)
# Without build isolation: the build tool is pinned in the lock as well.
INSTALL_SELF := $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .

.PHONY: run test quick docs lock

# Tests of single functions and of the pages, which start no run.
QUICK := dependencies links params overlay batches cost depth diffusion features matching multi_decoder_unet \
	pieces selection training_loop

run: $(STAMP)
	$(BIN)/snakemake
	@$(BIN)/python -m stagecraft.report.table results/metrics.json

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check workflow
	$(BIN)/snakemake --lint
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 40 --durations-min 10

quick: export OMP_NUM_THREADS := 1
quick: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --quiet $(QUICK:%=tests/test_%.py)

docs: $(STAMP)
	$(BIN)/zensical build --strict --clean

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("error: $(PYTHON) is older than Python 3.11; set PYTHON" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv --clear $(VENV)
	@echo 'Installing into $(VENV): several GB, some minutes.'
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(INSTALL_SELF)
	touch $@

# NVIDIA's packages exist for Linux only; PyTorch needs none elsewhere.
lock:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --editable '.[docs,export,slurm,test]'
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude stagecraft \
		| sed -E 's/^((nvidia|cuda|triton)[^=]*==.*)$$/\1 ; sys_platform == "linux"/' | LC_ALL=C sort --ignore-case > requirements.lock
	touch $(STAMP)
