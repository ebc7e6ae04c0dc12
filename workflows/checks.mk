# Refuses variables that no target knows, and values of N, FROM, RUN and NPROC that are not plain
# names or numbers. Only $(value …) is used until then: expanding a variable that holds $(shell …)
# would run it.

# Each in small letters too, as it is easily typed.
VARIABLES := n:N run:RUN recipe:RECIPE set:SET nproc:NPROC from:FROM chain:CHAIN presets:PRESETS \
	pp:PP variants:VARIANTS args:ARGS question:QUESTION venv:VENV python3:PYTHON3
KNOWN := $(foreach pair,$(VARIABLES),$(lastword $(subst :, ,$(pair))))
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
meant = $(patsubst $(1):%, (did you mean %=?),$(filter $(1):%,$(VARIABLES)))
$(foreach name,$(filter-out $(KNOWN) PYTHON PIP SHELL,$(GIVEN)),$(error $(name)= is no variable of \
	this Makefile$(call meant,$(name)); there are $(KNOWN)))

DIGITS := 0 1 2 3 4 5 6 7 8 9
LETTERS := a b c d e f g h i j k l m n o p q r s t u v w x y z \
	A B C D E F G H I J K L M N O P Q R S T U V W X Y Z

# $(call without,characters,text): text with the characters taken out.
without = $(if $(1),$(call without,$(wordlist 2,99,$(1)),$(subst $(firstword $(1)),,$(2))),$(2))

# $(call check-number,NAME,LEAST): NAME is not given, or is a number of at most 4 digits.
define check-number
$(if $(value $(1)),$(if $(strip $(call without,$(DIGITS),$(value $(1))))$(filter-out 1,$(words \
	$(value $(1))))$(filter-out $(2),$(filter 0%,$(value $(1))))$(filter-out 1 2 3 4,$(words \
	$(call spaced,$(value $(1))))),$(error $(1)=$(value $(1)): a whole number from $(2) to 9999, \
	without leading zeros)))
endef

# $(call spaced,123): 1 2 3
spaced = $(strip $(subst 0, 0,$(subst 1, 1,$(subst 2, 2,$(subst 3, 3,$(subst 4, 4,$(subst 5, 5,\
	$(subst 6, 6,$(subst 7, 7,$(subst 8, 8,$(subst 9, 9,$(1))))))))))))

# $(call check-name,NAME): letters, digits, dot, underscore, dash; begins with a letter or digit.
define check-name
$(if $(strip $(call without,$(DIGITS) $(LETTERS) . _ -,$(value $(1))))$(filter .% -% _%,$(value \
	$(1)))$(filter-out 1,$(words $(value $(1)))),$(error $(1)=$(value $(1)): a run is named with \
	letters, digits, dots, underscores and dashes, and begins with a letter or a digit))
endef

$(call check-number,N,0)
$(call check-number,FROM,1)
$(call check-number,NPROC,1)
$(call check-name,RUN)

# $(call need,N): stops the target when the variable is not given.
need = $(if $(value $(1)),,$(error say which iteration: $(1)=3))

# $(call refuse,NAME,INSTEAD): stops a target that has no use for the variable when it is given.
refuse = $(if $(value $(1)),$(error $@ takes no $(1)=: $(2)))
