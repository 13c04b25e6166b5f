# make demo   see it work: environment, model, server, eight clients, and all of it ended again
# make test   check everything that needs no GPU
# make serve  keep a server running: make serve MODEL=/models/chatglm-6b ARGS="--port 9000"
# make clean  remove what these made here

PYTHON ?= python3
VENV ?= .venv
MODEL ?= demo
ARGS ?=

# The torch to install where there is none yet. A requirement may carry pip options, e.g. the index that has CPU-only builds.
export TORCH_CPU ?= torch==2.13.0
export TORCH_GPU ?= torch>=2.11
export PYTHON

# Triton's interpreter runs the kernels' tests on a CPU; a torch built for GPUs has its own Triton.
DEV := $(if $(shell nvidia-smi -L 2>/dev/null),[dev],[dev,interpreter])

.PHONY: demo test serve clean

demo:
	@scripts/make_env $(VENV)
	@$(VENV)/bin/python scripts/demo.py

test:
	@scripts/make_env $(VENV) '$(DEV)'
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/check $(ARGS)

serve:
	@scripts/make_env $(VENV)
	@exec $(VENV)/bin/glmserve serve $(MODEL) $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
