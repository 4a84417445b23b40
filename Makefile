# make demo       train AdaDim on the built-in images, in two or three minutes on a CPU
# make test       run the tests
# make simulate   draw the figures of the paper's simulations
# make clean      remove .venv and the demo's run
#
# Each makes .venv from requirements.txt first. To use an environment that you have: make PYTHON=python3 demo

PYTHON = .venv/bin/python
ifeq ($(PYTHON),.venv/bin/python)
INSTALLED = .venv/installed
endif

.PHONY: demo test simulate clean

demo: $(INSTALLED)
	$(PYTHON) train.py --dataset shapes --alpha ada --beta 1e-4 --alpha-every 2 --arch resnet18 --width 8 \
	    --projector 256-256-256 --epochs 12 --batch-size 128 --baseline --out runs/demo --overwrite

simulate: $(INSTALLED)
	$(PYTHON) simulate.py

test: $(INSTALLED)
	$(PYTHON) -m pytest -q

.venv/installed: requirements.txt
	python3 -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	python3 -m venv .venv
	@echo "installing PyTorch and the rest of requirements.txt into .venv: minutes, and gigabytes"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	touch $@

clean:
	rm -rf .venv runs/demo
