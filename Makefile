# `make help` lists the targets. Everything is installed into .venv; nothing outside this folder is touched.

PYTHON ?= python3
VENV   ?= .venv
PROMPT ?= def fibonacci(n):
ARGS   ?=
export PROMPT

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
CXX_FILES := $(shell find headrace tests -name '*.cpp' -o -name '*.h')
SETUP_FILES := pyproject.toml constraints.txt native/CMakeLists.txt $(CXX_FILES)

.PHONY: help run test clients sanitize emulate lint format clean

help:
	@echo "make run       stream text from the model in the box   (PROMPT='...' ARGS='--max-tokens 64')"
	@echo "make test      run the fast tests                      (ARGS='-m slow' for the slow ones)"
	@echo "make clients   install lm-eval and LangChain, whose tests are skipped without them (550 MB)"
	@echo "make emulate   the tests of native code, with AVX-512 and AMX emulated"
	@echo "make sanitize  the same under the sanitizers of GCC    (ARGS='-k rope' for a part)"
	@echo "make lint      the checks of CI: ruff, mypy, clang-format"
	@echo "make format    apply the formatters"
	@echo "make clean     remove .venv and everything built"
	@echo "PYTHON=python3.12 picks the interpreter for .venv (3.10 or newer)."

run: $(VENV)/.installed
	@$(BIN)/headrace run "$$PROMPT" $(ARGS)

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest $(ARGS)

clients: $(VENV)/.installed-clients

# --- native code: a module in a build folder of its own, which only tests load -------------------------------

NATIVE_TESTS := tests/kernels tests/weight/formats tests/kv/codecs

define build
	@PATH="$(abspath $(BIN)):$$PATH" && cmake -S native -B build/$(1) -G Ninja $(2) --log-level=WARNING \
	    -DPython_EXECUTABLE="$(abspath $(BIN)/python)" \
	    -Dnanobind_DIR="$$($(BIN)/python -m nanobind --cmake_dir)" && ninja -C build/$(1) --quiet
endef

emulate: $(VENV)/.installed-dev
	$(call build,emulate,-DHEADRACE_EMULATE=ON)
	@$(BIN)/python -m pytest --native build/emulate $(NATIVE_TESTS) $(ARGS)

# Python is not built with the sanitizer, so its library is loaded first; the C++ library as well, whose throw it
# replaces. Leaks are not looked for: Python and PyTorch keep much until the end. New memory is filled with ones, so
# that a float that nobody wrote is not a number. --capture=sys leaves the report to the terminal, and an abort lets
# Python say which test it was. Levels are emulated where the sanitizer would not see into an instruction.
SANITIZED := LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:malloc_fill_byte=255:max_malloc_fill_size=67108864 \
    UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1

sanitize: $(VENV)/.installed-dev
	$(call build,sanitize,-DCMAKE_CXX_COMPILER=g++ -DHEADRACE_SANITIZE=ON -DHEADRACE_EMULATE=ON)
	@$(SANITIZED) $(BIN)/python -m pytest --native build/sanitize --capture=sys $(NATIVE_TESTS) $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@echo "$(BIN)/clang-format --dry-run -Werror  # $(words $(CXX_FILES)) files"
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_FILES)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis headrace/kernels/_native*
	find native -mindepth 1 ! -name CMakeLists.txt -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- set-up, done again only when one of its inputs changes -------------------------------------------------

# The tools that build the native kernels live in .venv as well, so that a change of one C++ file compiles one file.
define install
	@command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	    { echo "headrace: no C++ compiler found: install g++ 11+ or clang 14+, or set CXX" >&2; exit 1; }
	@echo "headrace: installing into $(VENV) (the first time takes a minute or two)" >&2
	@$(PIP) scikit-build-core nanobind cmake ninja
	@$(PIP) --no-build-isolation --editable "$(1)"
endef

$(VENV)/.installed: $(VENV)/.created $(SETUP_FILES)
	$(call install,.)
	@touch $@

# The development set contains the plain one, so it satisfies `make run` too.
$(VENV)/.installed-dev: $(VENV)/.created $(SETUP_FILES)
	$(call install,.[dev])
	@touch $(VENV)/.installed $@

$(VENV)/.installed-clients: $(VENV)/.installed-dev
	@$(PIP) --no-build-isolation --editable ".[dev,clients]"
	@touch $@

$(VENV)/.created:
	@command -v $(PYTHON) >/dev/null || \
	    { echo "headrace: $(PYTHON) not found: install Python 3.10 or newer, or set PYTHON" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "headrace: $(PYTHON) is too old: Python 3.10 or newer is needed (set PYTHON)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "headrace: $(PYTHON) has no venv module: install it (Debian: apt install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import os, sys, sysconfig as s; sys.exit(not os.path.exists(s.get_path("include") + "/Python.h"))' || \
	    { echo "headrace: $(PYTHON) has no C headers: install them (Debian: apt install python3-dev)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@
