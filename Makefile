# make lab: work through the lessons.   make test: check everything.
# make lessons: execute all notebooks and write them back.   make bench: the benchmarks, with their peers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LESSONS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab test test-oldest lessons bench

lab: $(VENV)/installed-lab
	$(BIN)/jupyter lab $(AS_ROOT) $(LAB_FLAGS) --LabApp.default_url=/lab/tree/notebooks/00-start-here.ipynb

test: $(VENV)/installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/pytest --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg --durations 15 tests $(LESSONS)

# The oldest releases that pyproject.toml allows, so that its lower bounds are true.
test-oldest: $(VENV)/installed-test
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(VENV)-oldest
	$(BIN)/uv pip install --quiet --python $(VENV)-oldest --resolution lowest-direct --editable '.[test]'
	$(VENV)-oldest/bin/pytest tests

lessons: $(VENV)/installed-test
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False $(LESSONS)

bench: $(VENV)/installed-bench
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

$(VENV)/installed-%: pyproject.toml install.sh
	sh install.sh $(PYTHON) $(VENV) $(patsubst %,'[%]',$(filter-out lab,$*))
	touch $@
