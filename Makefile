# make lab: work through the lessons.   make test: check all but what seldom changes.   make test-all: that, too.
# make lessons: execute all notebooks and write them back.   make bench: the benchmarks, with their peers.
# make offline: a zip that installs without network.   make lesson-report: time and memory of each lesson.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
LESSONS := $(sort $(wildcard notebooks/[0-9]*.ipynb))
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab test test-all test-oldest lessons bench offline lesson-report

lab: $(VENV)/installed-lab
	$(BIN)/jupyter lab $(AS_ROOT) $(LAB_FLAGS) --LabApp.default_url=/lab/tree/notebooks/00-start-here.ipynb

# Two processes of one thread: quicker than one of two threads, above all where other programs run. The lessons begin,
# so that at the end no process waits long for the other.
BOTH_CORES := -n 2 --dist loadfile --no-loadscope-reorder
test test-all test-oldest: export OMP_NUM_THREADS = 1

test test-all: $(VENV)/installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/pytest $(BOTH_CORES) --durations 15 $(if $(filter test-all,$@),-m 'slow or not slow')

test-all: test-oldest

# The oldest releases that pyproject.toml allows, so that its lower bounds are true.
test-oldest: $(VENV)/installed-test
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python $(VENV)-oldest
	$(BIN)/uv pip install --quiet --python $(VENV)-oldest --resolution lowest-direct --editable '.[test]'
	$(VENV)-oldest/bin/pytest $(BOTH_CORES) tests

lessons: $(VENV)/installed-test
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False $(LESSONS)

bench: $(VENV)/installed-bench
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

offline: $(VENV)/installed-lab
	$(BIN)/python tools/offline.py $(OFFLINE_FLAGS)

lesson-report: $(VENV)/installed-lab
	$(BIN)/python tools/lesson_report.py $(REPORT_FLAGS)

$(VENV)/installed-%: pyproject.toml install.sh
	sh install.sh $(PYTHON) $(VENV) $(patsubst %,'[%]',$(filter-out lab,$*))
	touch $@
