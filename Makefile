# Each target works from a bare clone with Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo up test test-triton test-clients test-compose soak load lint format docs protos bench failover train-minigrid distill-minigrid evaluate-minigrid train-doom evaluate-doom train-perception evaluate-perception train-reward compare-reward evaluate-reward train-mazes evaluate-mazes train-navigator evaluate-navigator clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-18s %s\n", $$1, $$2}'

install: $(STAMP) ## Create .venv with the SDK, the server, the simulator and the development tools (CPU)

$(STAMP): pyproject.toml clients/python/pyproject.toml clients/loadtest/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e 'clients/python[cli,media]' -e clients/loadtest -e '.[cpu,dev]'
	# It asks for NumPy below 2, which nothing in it needs, and which Python 3.13 has no wheels of.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps openpi-client==0.1.2
	touch $(STAMP)

demo: install ## Serve the shipped world, steer, fork, rewind, save it; pictures in out/
	$(BIN)/worldtree demo --out out

up: install ## Serve everything on loopback until Ctrl-C
	$(BIN)/worldtree up

# By two at a time; whoever takes one that hangs ends with it, and another goes on. What fails is run once more, alone: a
# test of time that a busy machine failed passes then, and is named in the output; what is broken fails twice.
WORKERS ?= 2
HANGS := -o timeout_method=thread

test: install ## Run the tests
	$(BIN)/pytest $(HANGS) -n $(WORKERS) --dist worksteal || \
	  { test $$? -eq 1 && $(BIN)/pytest $(HANGS) --last-failed --last-failed-no-failures=none; }

# In an environment of its own: what it brings is large, and for Linux on x86-64 only. Bit for bit the same needs the
# same ONNX Runtime.
test-triton: install ## Run the tests of backends against a real Triton server too, and tell what a run there costs
	test -x out/triton/bin/python || $(PYTHON) -m venv out/triton
	out/triton/bin/python -m pip install --quiet --disable-pip-version-check nvidia-pytriton==0.7.0 \
	  onnxruntime==$$($(BIN)/python -c 'import onnxruntime; print(onnxruntime.__version__)')
	WORLDTREE_TRITON_PYTHON=$(CURDIR)/out/triton/bin/python $(BIN)/pytest tests/integration/reward/test_backend.py

# What their packages pin has nothing to do with us, so each has an environment of its own.
test-clients: install ## Run clients of others against a gateway: KServe's, AIPerf, and Node's where npm is
	for client in kserve==0.21.0 aiperf==0.13.0; do folder=out/clients/$${client%%=*}; \
	  test -x $$folder/bin/python || $(PYTHON) -m venv $$folder; \
	  $$folder/bin/python -m pip install --quiet --disable-pip-version-check $$client || exit 1; done
	WORLDTREE_KSERVE_PYTHON=$(CURDIR)/out/clients/kserve/bin/python \
	WORLDTREE_AIPERF_PYTHON=$(CURDIR)/out/clients/aiperf/bin/python \
	  $(BIN)/pytest tests/integration/gateway/test_stock_clients.py tests/e2e/test_node_client.py

# Apart from the machine's network and processes, so that all ends with it; Docker needs root.
test-compose: install ## Build the images, bring up docker-compose.yml in a Docker daemon of its own, break it (minutes)
	bash tests/e2e/compose/prepare.sh
	WORLDTREE_COMPOSE=$${WORLDTREE_COMPOSE:-1} unshare --net --mount --pid --fork --mount-proc --kill-child \
	  $(BIN)/pytest -s tests/e2e/compose

soak: install ## Ten minutes of anything at random, in a pool that is always dry; JSON in out/bench/
	WORLDTREE_SOAK_S=600 WORLDTREE_SOAK_JSON=out/bench/soak.json $(BIN)/pytest -s tests/soak

# Each against a server of its own: what one leaves in the caches is no help to the next.
load: install ## Every load scenario but the soak, at a stack of its own; JSON and HTML in out/load/
	for scenario in steady ramp plays spike churn cache robots; do \
	  $(BIN)/python clients/loadtest/with_stack.py $$scenario --out out/load || failed="$$failed $$scenario"; \
	done; test -z "$$failed" || { echo "thresholds that do not hold:$$failed"; exit 1; }

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

docs: install ## Write docs/reference anew and build the site in out/site
	$(BIN)/python docs/generate.py
	$(BIN)/mkdocs build --strict

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

train-mazes: $(STAMP) ## Train the maze transformer and its baseline, export and evaluate models/mazes (an hour of one core; resumable)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python -m training.mazes.train --objective mlm_u
	$(BIN)/python -m training.mazes.train --objective next_token
	$(BIN)/python -m training.mazes.export
	$(BIN)/python -m training.mazes.evaluate
	$(BIN)/python -m training.mazes.card

evaluate-mazes: $(STAMP) ## Evaluate models/mazes, and the baseline in training/mazes/weights, on held-out seeds
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python -m training.mazes.evaluate
	$(BIN)/python -m training.mazes.card

train-navigator: $(STAMP) ## Train, export and evaluate models/joint and what it is compared with (two hours of one core; resumable)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	$(BIN)/python -m training.navigator.data --workers 2
	for shape in joint action-only reactive; do $(BIN)/python -m training.navigator.train --shape $$shape || exit 1; done
	$(BIN)/python -m training.navigator.export
	$(BIN)/python -m training.navigator.evaluate
	$(BIN)/python -m training.navigator.mismatch
	$(BIN)/python -m training.navigator.card

evaluate-navigator: install ## Each planner in each environment, closed loop through the gateway, 300 episodes a cell (hours)
	$(BIN)/python -m training.navigator.evaluate
	$(BIN)/python -m training.navigator.openpi
	$(BIN)/python -m training.navigator.card

clean: ## Remove what the targets made
	rm -rf .venv out .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
