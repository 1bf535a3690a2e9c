# make demo      install what is missing, build and run a real image as an ordinary user (DEMO_DEBIAN=0: without the Debian part)
# make test      install what is missing, run the whole suite as an ordinary user (minutes)
# make lint      formatting, types, import contract, sizes
# make bench     micro-benchmarks (tests/bench); compare builders with a driver of your own
# make conform   differential runs against other builders and their data (conformance/)
# make vm        the units and the limits under a real systemd, in an emulated machine (tests/vm; wants root, QEMU; half an hour)
# make fuzz      coverage-guided fuzzing of the front end (needs atheris)

.PHONY: demo test test-all lint bench conform fuzz vm clean

demo:
	@.ci/setup demo
	@.ci/as-user examples/demo/run

test:
	@.ci/setup test
	@.ci/as-user .ci/test
	@.ci/as-root

test-all:
	@.ci/setup test
	@.ci/as-user .ci/test --all

lint:
	@.ci/setup lint
	@.ci/as-user .ci/lint

bench:
	@.ci/setup test
	@.ci/as-user sh -c 'for f in tests/bench/*.py; do echo "== $$f"; python "$$f" || exit 1; done'

conform:
	@.ci/setup test
	@.ci/as-user sh -c 'python conformance/dockerfiles.py && python conformance/builds.py'

fuzz:
	@.ci/setup test
	@.ci/as-user sh -c 'pip install -q atheris && for f in tests/fuzz/*.py; do python "$$f" -max_total_time=60; done'

vm:
	@.ci/setup test
	@test -e "$${VM:-/var/tmp/ocibuildd-vm}/disk" || tests/vm/image.sh "$${VM:-/var/tmp/ocibuildd-vm}"
	@. .ci/places; PYTHON=$$dev_dir/venv/bin/python tests/vm/run.sh "$${VM:-/var/tmp/ocibuildd-vm}"

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache dist
