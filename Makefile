# Two commands do everything, set-up included:
#   make quickstart            the whole ladder on this machine     (ARGS="--smoke": in the shortest time)
#   make test                  all tests                            (ARGS="-m 'not engine'": the quick ones)
# Variables: PYTHON (3.11 or newer, for the environment), VENV (its folder), ARGS, LADDER_EXTRA (cpu or gpu; found by itself).
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.PHONY: quickstart test setup clean

quickstart: setup
	@$(VENV)/bin/python -m launch quickstart $(ARGS)

test: setup
	@$(VENV)/bin/python -m pytest $(ARGS)

setup:
	@$(PYTHON) deploy/setup_env.py --venv $(VENV)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .hypothesis
