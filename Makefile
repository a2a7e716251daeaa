.DEFAULT_GOAL := help
.PHONY: help setup test mutants docs run readme pages clean
BIN := .venv/bin

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv with everything for development (2 minutes, 6 GB)
	@python3 go.py setup

test:  ## execute the notebooks as tests, then pytest
	@python3 go.py test

mutants: setup  ## change the modules, one thing at a time, and see what no check notices (half an hour): make mutants [FLAGS='--seed 1']
	@$(BIN)/python tools/mutants.py $(FLAGS)

docs: setup readme  ## render the site into _docs, check its links, say where it is
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/docs.py

run: setup  ## execute a notebook and keep its outputs: make run NB=nbs/06_d3pm.ipynb [FLAGS=slow]
	@test -n "$(NB)" || { echo 'name a notebook: make run NB=nbs/06_d3pm.ipynb'; exit 2; }
	@$(BIN)/python tools/run_nb.py $(NB) $(if $(FLAGS),--flags $(FLAGS))

readme:  ## write README.md from nbs/index.ipynb
	@python3 tools/readme.py

pages: setup  ## write what is generated: badges and install cells from settings.ini, exercises, equations, names, README.md
	@$(BIN)/python tools/address.py
	@$(BIN)/python tools/assets.py && $(BIN)/nbdev_export
	@$(BIN)/python tools/exercises.py
	@$(BIN)/python tools/equations.py
	@$(BIN)/python tools/api.py
	@$(BIN)/python tools/readme.py

clean:  ## remove the rendered site, builds and caches; .venv stays
	@rm -rf _proc _docs _site build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find discdiff_nb nbs tests tools \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
