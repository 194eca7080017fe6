# test: notebooks as tests, then whole programs · check: generated files are what the notebooks make
# results: models, tables and README from the folders in runs/
# prepare: everything to run before a commit · docs: the site into _docs · lab: open the course
# fuzz: 20,000 mutated files into every reader · long: all checks that take longer than CI has · lock: requirements.lock anew
.PHONY: test check docs prepare lab export readme clean results fuzz long lock locked-install
MUTATIONS = 20000

test:
	OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --timing
	pytest -q -n 2 --dist loadfile

check: export readme clean
	git diff --exit-code -- mlxvit README.md nbs || (echo "the package, the README or the notebooks are not what 'make prepare' writes" && false)

prepare: export readme clean test

export:
	nbdev_export

readme:
	python tools/site.py readme

clean:
	python tools/clean.py

docs:
	python tools/site.py

results:
	python tools/results.py

lab:
	jupyter lab nbs

fuzz:
	OMP_NUM_THREADS=1 python tests/fuzz.py --mutations $(MUTATIONS)

lock:
	python tools/lock.py

# In an environment of its own: every file of the lock is fetched, and its hash compared; nothing is installed
locked-install:
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && python -m venv "$$folder" && "$$folder/bin/pip" install --quiet --dry-run --require-hashes -r requirements.lock && echo "every file of requirements.lock has its hash"

# A check that was not written yet is named and left out
long: fuzz
	@for check in "long_threads.py --framework torch" "long_threads.py --framework mlx" long_runs.py long_sdist.py; do \
	  if [ -f "tests/$${check%% *}" ]; then echo "+ python tests/$$check"; OMP_NUM_THREADS=1 python tests/$$check || exit 1; \
	  else echo "- tests/$${check%% *} is not here"; fi; done
	$(MAKE) locked-install
