# test: notebooks as tests, then whole programs · check: generated files are what the notebooks make
# results: models, tables and README from the folders in runs/
# prepare: everything to run before a commit · docs: the site into _docs · lab: open the course
.PHONY: test check docs prepare lab export readme clean results

test:
	OMP_NUM_THREADS=1 nbdev_test --n_workers 2 --timing
	pytest -q

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
