# Each target works from a bare clone with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo up test soak lint format protos bench failover train-minigrid distill-minigrid evaluate-minigrid train-doom evaluate-doom train-perception evaluate-perception train-reward compare-reward evaluate-reward clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

install: $(STAMP) ## Create .venv with the SDK, the server, the simulator and the development tools (CPU)

$(STAMP): pyproject.toml clients/python/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e 'clients/python[cli,media]' -e '.[cpu,dev]'
	touch $(STAMP)

demo: install ## Serve the shipped world, steer, fork, rewind, save it; pictures in out/
	$(BIN)/worldtree demo --out out

up: install ## Serve everything on loopback until Ctrl-C
	$(BIN)/worldtree up

test: install ## Run the tests
	$(BIN)/pytest

soak: install ## Ten minutes of anything at random, in a pool that is always dry; JSON in out/bench/
	WORLDTREE_SOAK_S=600 WORLDTREE_SOAK_JSON=out/bench/soak.json $(BIN)/pytest -s tests/soak

lint: install ## ruff, mypy, import-linter, buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint protos

format: install ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/buf format -w protos

protos: install ## Generate the code of the protos
	$(BIN)/python protos/generate.py

bench: install ## Run all benchmarks; JSON in out/bench/; fails when a bar does not hold
	$(BIN)/python benchmarks/run.py --out out/bench

failover: install ## Kill a replica under 16 plays and 4 that step, 20 times; the longest pause, JSON in out/bench/
	WORLDTREE_FAILOVER_ROUNDS=20 WORLDTREE_FAILOVER_JSON=out/bench/failover.json \
	  $(BIN)/pytest -s tests/integration/test_failover.py

train-minigrid: $(STAMP) ## Train, distil, export and evaluate models/minigrid (hours of CPU; resumable)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python -m training.minigrid.data
	$(BIN)/python -m training.minigrid.train
	$(BIN)/python -m training.minigrid.scene_train
	$(MAKE) distill-minigrid
	$(BIN)/python -m training.minigrid.scene_export
	$(BIN)/python -m training.minigrid.scene_evaluate

distill-minigrid: $(STAMP) ## Distil models/minigrid from the teacher that is kept, export and evaluate (resumable)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python -m training.minigrid.data
	for method in dmd sc-dmd salt; do $(BIN)/python -m training.minigrid.distill --method $$method || exit 1; done
	$(BIN)/python -m training.minigrid.export
	$(BIN)/python -m training.minigrid.evaluate

evaluate-minigrid: install ## Evaluate models/minigrid on held-out seeds
	$(BIN)/python -m training.minigrid.evaluate
	$(BIN)/python -m training.minigrid.scene_evaluate

train-doom: $(STAMP) ## Train, export and evaluate models/doom (two hours of one core; resumable)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python -m training.doom.data
	$(BIN)/python -m training.doom.latents
	$(BIN)/python -m training.doom.train_place
	$(BIN)/python -m training.doom.train
	$(BIN)/python -m training.doom.train_autoencoder
	$(BIN)/python -m training.doom.export
	$(BIN)/python -m training.doom.judge
	$(BIN)/python -m training.doom.evaluate

evaluate-doom: install ## Evaluate models/doom on held-out walks (needs the train extra and what train-doom left in out/)
	$(BIN)/python -m training.doom.judge
	$(BIN)/python -m training.doom.evaluate

train-perception: $(STAMP) ## Train, export and evaluate models/perception, three seeds on two cores (under 40 minutes; resumable)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python -m training.perception.data
	printf '%s\n' 0 1 2 | xargs -P 2 -I {} sh -c '$(BIN)/python -m training.perception.train --seed {} \
	  && $(BIN)/python -m training.perception.export --seed {}'
	$(BIN)/python -m training.perception.evaluate

evaluate-perception: install ## Evaluate models/perception on held-out seeds (and the other seeds that train-perception left in out/)
	$(BIN)/python -m training.perception.data
	$(BIN)/python -m training.perception.evaluate

train-reward: $(STAMP) ## Train, export and evaluate models/judge (an hour and a half of one core; resumable)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python -m training.reward.data --workers 2
	$(BIN)/python -m training.reward.train --shape double
	$(BIN)/python -m training.reward.export
	$(BIN)/python -m training.reward.evaluate
	$(BIN)/python -m training.reward.downstream
	$(BIN)/python -m training.reward.card

compare-reward: $(STAMP) ## Train the shapes that the judge is compared with, three seeds each (hours; resumable), and evaluate
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python -m training.reward.data --workers 2
	for noise in 0.3 0.0; do for seed in 0 1 2; do for shape in double dense single one-expert; do \
	  echo $$shape $$noise $$seed; done; done; done \
	  | xargs -P 2 -L 1 sh -c '$(BIN)/python -m training.reward.train --shape $$0 --noise $$1 --seed $$2 --steps 800 \
	    --target out/training/reward/compare'
	$(BIN)/python -m training.reward.evaluate
	$(BIN)/python -m training.reward.card

evaluate-reward: install ## Evaluate models/judge on held-out seeds (and the shapes that compare-reward left in out/)
	$(BIN)/python -m training.reward.data
	$(BIN)/python -m training.reward.evaluate
	$(BIN)/python -m training.reward.downstream
	$(BIN)/python -m training.reward.card

clean: ## Remove what the targets made
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
