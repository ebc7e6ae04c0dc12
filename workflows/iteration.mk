# The graph of a run up to iteration N. Make trusts no time stamp here: the planner is asked once
# which stages are missing or stale, and only these become targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory

include workflows/stages.mk

$(call need,N)
NUMBERS := $(shell seq $(N))

# Before the environment exists (`make -n` on a fresh clone) nothing can be complete.
EVERYTHING = prepare $(foreach n,$(NUMBERS),rollout-$(n) score-$(n) logprobs-$(n) train-$(n))
PLAN := $(if $(wildcard $(PYTHON)),$(shell $(PYTHON) -m workflows.plan --run $(RUN) --to $(N) \
	$(if $(FROM),--from $(FROM))$(RECIPE_OPTIONS)$(SET_OPTIONS) || echo FAILED),$(EVERYTHING))
$(if $(filter FAILED,$(PLAN)),$(error see the message above))

before = $(word $(1),0 $(NUMBERS))
made-again = $(if $(FROM),$(if $(filter $(wordlist $(FROM),9999,$(NUMBERS)),$(1)), --overwrite))

iteration: $(PLAN)
	@echo 'run $(RUN) is complete up to iteration $(N)$(if $(PLAN),,; nothing to do)'

# A recipe that was given is written into the run by the first stage, so the others need not see it.
prepare:
	$(call stage,prepare,)

# $(1) stage, $(2) iteration, $(3) stages that come before it.
define RULE
$(1)-$(2): $(filter $(PLAN),prepare $(3))
	$$(call stage-in-force,$(1),$(2)$(call made-again,$(2)))
.PHONY: $(1)-$(2)
endef

$(foreach n,$(NUMBERS),\
	$(eval $(call RULE,rollout,$(n),prepare train-$(call before,$(n))))\
	$(eval $(call RULE,score,$(n),rollout-$(n)))\
	$(eval $(call RULE,logprobs,$(n),rollout-$(n)))\
	$(eval $(call RULE,train,$(n),score-$(n) logprobs-$(n)))\
	$(eval $(call RULE,evaluate,$(n),train-$(n))))
$(eval $(call RULE,evaluate,0,prepare))

# In a chain the parent that has imported runs the stages: its client is the shell of their lines,
# which stay what one would type. A single stage gains nothing.
ifdef STAGED_GRPO_CHAIN
ifneq ($(word 2,$(PLAN)),)
$(PLAN): SHELL := $(PYTHON)
$(PLAN): .SHELLFLAGS := -IS workflows/chain/client.py
endif
endif

.PHONY: iteration prepare
