# How a stage is called: the very command line one would type.

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

RECIPE_OPTIONS := $(if $(value RECIPE), --recipe $(call quoted,$(value RECIPE)))
SET_OPTIONS := $(foreach item,$(value SET),--set $(call quoted,$(item)))
SET_OPTIONS := $(if $(SET_OPTIONS), $(SET_OPTIONS))

# Stages that run a model take NPROC processes; the others are one process. Without the dashes
# torchrun takes --run for an abbreviation of its own options.
TORCHRUN := $(VENV)/bin/torchrun --standalone --nproc-per-node
processes = $(if $(filter rollout logprobs train evaluate tokens,$(1)),$(NPROC),1)
launcher = $(if $(filter 1,$(processes)),$(PYTHON) -m,$(TORCHRUN) $(processes) -m --)

# torchrun's own default, said by us so that it does not warn of it in every stage.
ifneq ($(NPROC),1)
export OMP_NUM_THREADS ?= 1
endif

# $(call stage-in-force,score,3): run a stage with the recipe in force; prepare has no iteration.
stage-in-force = $(call launcher,$(1)) stages.$(1) --run $(RUN)$(if $(2), --iteration $(2))

# $(call stage,score,3): put RECIPE and SET in force first.
stage = $(call stage-in-force,$(1),$(2))$(RECIPE_OPTIONS)$(SET_OPTIONS)
