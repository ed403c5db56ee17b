# Every target does its own set-up: the environment is .venv in this checkout (.venv-docs, .venv-jax, .venv-torch beside it). `make` lists the targets.
PYTHON ?= $(firstword $(foreach version,3.11 3.12 3.13,$(shell python$(version) -c '' 2>/dev/null && echo python$(version))) python3)
BIN := .venv/bin
WORKERS ?= 3
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help install test test-jax \
	lint docs docs-serve demo seeds gains losses quantization transformers codings topics sentiment sentences translation dialogue tune bench peers compare notebook wheel clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

.venv/.installed: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

install: .venv/.installed  ## Make .venv and install the package into it

test: install  ## Run the tests, in WORKERS processes
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

test-jax: .venv-jax/.installed  ## Run the tests of the JAX step, in an environment with jax
	.venv-jax/bin/python -m pytest tests/test_jax_step.py

.venv-jax/.installed: setup.cfg pyproject.toml
	test -x .venv-jax/bin/python || $(PYTHON) -m venv .venv-jax
	.venv-jax/bin/python -m pip install --quiet --upgrade pip
	.venv-jax/bin/python -m pip install --quiet --editable '.[jax,test]'
	touch $@

docs: .venv-docs/.installed  ## Build the documentation into site/; broken links are errors
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs build --strict --quiet

docs-serve: .venv-docs/.installed  ## Show the documentation on http://127.0.0.1:8000, rebuilt at each change
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/python -m mkdocs serve

.venv-docs/.installed: docs/requirements.txt
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --upgrade pip
	.venv-docs/bin/python -m pip install --quiet --requirement docs/requirements.txt
	touch $@

lint: install  ## Check style with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

demo: install  ## Distil a multilingual classifier, print it by language, export it: runs/demo
	$(BIN)/keras-kd demo

seeds: install  ## The demo over five seeds: the table of the README, and its picture: runs/seeds
	$(BIN)/python benchmarks/five_seeds.py
	$(BIN)/python benchmarks/plot_gains.py --table runs/seeds/table.md --output runs/seeds/gains.png

gains: install  ## Draw the picture of the README from the table of the README
	$(BIN)/python benchmarks/plot_gains.py

losses: install  ## What each loss gains over five seeds; DATA=folder for the tweets too: runs/losses
	$(BIN)/python benchmarks/losses.py $(if $(DATA),--data $(DATA))

quantization: install  ## What int8 and int4 cost, after training and aware of it, over five seeds: runs/quantization
	$(BIN)/python benchmarks/quantization.py

transformers: install  ## What losses over attention and hidden states gain, with DATA=folder: runs/transformers
	$(BIN)/python benchmarks/transformer_losses.py $(if $(DATA),--data $(DATA))

codings: install  ## What stored logits lose by each coding, with DATA=folder: runs/codings
	$(BIN)/python benchmarks/codings.py $(if $(DATA),--data $(DATA))

topics: install  ## Topics in 46 languages from labels in English, with DATA=folder: runs/topics
	$(BIN)/python examples/cross_lingual_topics.py --data $(DATA) $(OPTIONS)

sentiment: install  ## Sentiment of tweets in 8 languages, all or few labelled, with DATA=folder: runs/sentiment
	$(BIN)/python examples/sentiment.py --data $(DATA) $(OPTIONS)

sentences: install  ## A multilingual sentence encoder, by the translations it finds, with DATA=folder: runs/sentences
	$(BIN)/python examples/sentence_encoder.py --data $(DATA) $(OPTIONS)

translation: install  ## A translator of captions and its students, with DATA=folder: runs/translation
	$(BIN)/python examples/translation.py --data $(DATA) $(OPTIONS)

dialogue: install  ## Dialogues in 7 languages, chosen and written, and students of both, with DATA=folder: runs/dialogue
	$(BIN)/python examples/dialogue.py --data $(DATA) $(OPTIONS)

tune: install  ## What tuning λ, temperature and learning rate gains over five seeds: runs/tuning
	$(BIN)/python benchmarks/tuning.py

bench: install peers  ## keras_kd against everyone, in half an hour; QUICK=1 to see that it runs: runs/bench
	$(BIN)/python benchmarks/bench.py $(if $(QUICK),--quick)

peers: .venv-torch/.installed  ## Make .venv-torch, with PyTorch and torchdistill, for bench

.venv-torch/.installed: benchmarks/peers/requirements.txt
	test -x .venv-torch/bin/python || $(PYTHON) -m venv .venv-torch
	.venv-torch/bin/python -m pip install --quiet --requirement benchmarks/peers/requirements.txt
	.venv-torch/bin/python -m pip install --quiet --no-deps torchdistill==1.1.5
	touch $@

compare: install  ## Show each difference from keras.distillation
	$(BIN)/python benchmarks/compare_keras_distillation.py

notebook: install  ## Run the notebooks and write their outputs into them
	$(BIN)/python notebooks/run.py multilingual_distillation
	$(BIN)/python notebooks/run.py ship_to_mobile

wheel: install  ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean:  ## Remove what was built, not runs/
	rm -rf .venv .venv-* site .cache dist build *.egg-info .pytest_cache .ruff_cache
