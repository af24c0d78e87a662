# Everything a person or CI does with the tree. `make` alone lists it.
#
#   PYTHON=python3.12   the interpreter to set up with
#   TESTS=tests/env     what `make test` runs
#   ARGS="-m 0x3"       more arguments for vhostrt in `make run`, or for pytest elsewhere
#   DISK=./disk.img     what `make run` serves

PYTHON ?= python3
VENV ?= .venv
TESTS ?= tests
ARGS ?=
DISK ?= malloc:256M
# Where `make run` puts the socket of the disk: a directory of the user's own.
RUN_DIR ?= $(or $(XDG_RUNTIME_DIR),/tmp)/vhostrt-$(shell id -u)

BIN := $(VENV)/bin
BUILD = $(BIN)/python setup.py -q build_ext --inplace
STAMPS := $(VENV)/stamps
SANITIZED := pyx vhostrt tests bench docs setup.py pyproject.toml README.md LICENSE
PYTEST := $(abspath $(BIN))/python -m pytest

.PHONY: help run build build-tests test check check-release check-tsan check-asan bench lint docs \
        clean distclean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:                           ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

$(STAMPS)/system-%: .ci/system-packages
	@.ci/system-packages $(PYTHON) $*
	@mkdir -p $(@D) && touch $@

$(STAMPS)/venv: | $(STAMPS)/system-build
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(STAMPS)/require-%: pyproject.toml .ci/requirements $(STAMPS)/venv
	$(BIN)/python .ci/requirements $* >$(VENV)/require-$*.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r $(VENV)/require-$*.txt
	@touch $@

# The command vhostrt, and its version as importlib.metadata sees it, point at this tree.
$(STAMPS)/editable: pyproject.toml setup.py $(STAMPS)/require-build
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

run: build                      ## set up, build, and serve a RAM disk to a virtual machine
	@mkdir -p -m 700 $(RUN_DIR)
	@exec $(BIN)/vhostrt -S $(RUN_DIR) --disk $(DISK) $(ARGS)

build: $(STAMPS)/editable       ## set up and build in place
	$(BUILD)

build-tests: $(STAMPS)/system-test $(STAMPS)/editable $(STAMPS)/require-test
	VHOSTRT_TESTS=1 VHOSTRT_WERROR=1 $(BUILD)

test: build-tests               ## set up, build, and run every test
	$(PYTEST) $(TESTS) $(ARGS)

# Tests named test_stress_* hammer a lock-free structure from several threads. VHOSTRT_STRESS
# multiplies what they do.
check: check-release check-tsan check-asan ## hammer the lock-free structures; run under sanitizers

check-release: build-tests
	VHOSTRT_STRESS=50 $(PYTEST) -k stress --timeout 1200 tests $(ARGS)

# Python itself is not instrumented, so the sanitizer is loaded before it. Leaks are not looked for:
# the interpreter leaves its own. SIGBUS is ours to handle.
check-tsan: build/tsan/built
	cd build/tsan && LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" VHOSTRT_STRESS=5 \
	    TSAN_OPTIONS="halt_on_error=1 history_size=7 suppressions=$(CURDIR)/.ci/tsan.supp" \
	    $(PYTEST) -p no:cacheprovider --capture=sys -k stress --timeout 1200 tests $(ARGS)

check-asan: build/asan/built
	cd build/asan && CFLAGS=-DVH_DEBUG=1 PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:handle_sigbus=0 \
	    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	    $(PYTEST) -p no:cacheprovider --capture=sys --ignore=tests/e2e --ignore=tests/source --timeout 1200 tests \
	    $(ARGS)

# A sanitized build stands in a tree of its own: the extension modules have the same names. Sources
# keep their times in the copy, so that only what changed is compiled again.
.PHONY: build/tsan/built build/asan/built
build/tsan/built build/asan/built: build-tests
	@mkdir -p $(@D)
	@find $(@D) \( -name '*.py' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.h' \) -delete
	@tar -cf - --exclude='*.so' --exclude='*.c' --exclude=__pycache__ $(SANITIZED) | tar -C $(@D) -xf -
	cd $(@D) && VHOSTRT_PROFILE=$(notdir $(@D)) VHOSTRT_TESTS=1 $(abspath $(BIN))/python setup.py -q \
	    build_ext --inplace

bench: build-tests              ## run the benchmarks; their figures go to bench/results/
	@mkdir -p bench/results
	$(PYTEST) bench --benchmark-json=bench/results/$$(date +%Y%m%d-%H%M%S).json $(ARGS)

lint: build-tests               ## check the sources only
	$(PYTEST) -q tests/source --deselect tests/source/test_packaging.py $(ARGS)

docs: build                     ## write docs/rpc.md anew, from what the RPC methods declare
	$(BIN)/python -m vhostrt.rpc.reference >docs/rpc.md

clean:                          ## remove what was built, keep the virtual environment
	rm -rf build dist *.egg-info
	find pyx vhostrt tests bench \( -name '*.so' -o -name '*.c' \) -delete
	find pyx vhostrt tests bench -name __pycache__ -prune -exec rm -rf {} +

distclean: clean                ## remove the virtual environment and the caches too
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .mypy_cache .hypothesis .benchmarks
