# make demo       train AdaDim on built-in images: 2 to 8 minutes on a CPU
# make test       run the tests
# make simulate   draw the figures of the paper's simulations
# make uniformity draw the figures of the second paper, on measures of uniformity
# make clean      remove .venv and the demo's run
#
# All but clean first create .venv from requirements.txt; to use an existing environment instead:
# make PYTHON=python3 demo

PYTHON = .venv/bin/python
ifeq ($(PYTHON),.venv/bin/python)
INSTALLED = .venv/installed
endif

.PHONY: demo test test-runs test-rest simulate uniformity clean

demo: $(INSTALLED)
	$(PYTHON) train.py --dataset shapes --alpha ada --beta 1e-4 --alpha-every 2 --arch resnet18 --width 8 \
	    --projector 256-256-256 --epochs 12 --batch-size 128 --baseline --out runs/demo --overwrite
	@echo "next: $(PYTHON) evaluate.py runs/demo"

simulate: $(INSTALLED)
	$(PYTHON) simulate.py

uniformity: $(INSTALLED)
	$(PYTHON) uniformity.py

# two halves in parallel, on one core each
RUNS = $(patsubst %,tests/test_%.py,train methods study readme figures bench)
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory --keep-going --jobs=2 test-runs test-rest

test-runs: $(INSTALLED)
	$(PYTHON) -m pytest -q $(RUNS)

test-rest: $(INSTALLED)
	$(PYTHON) -m pytest -q $(RUNS:%=--ignore=%)

.venv/installed: requirements.txt
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	python3 -m venv .venv
	@echo "installing requirements.txt into .venv: takes minutes and gigabytes"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $@

clean:
	rm -rf .venv runs/demo
