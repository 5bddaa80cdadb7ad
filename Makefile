# Needs Python 3.11 and make; everything else comes into .venv.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# pytest keeps its rewritten modules in .pyc files; without them each worker takes six seconds more to collect.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo quick test check check-english catalogues docs site release test-system test-faults mutants bench packages clean

help:
	@echo "make demo          the whole path on this machine, with sample mail"
	@echo "make quick         the tests that need neither PostgreSQL nor other programs"
	@echo "make test          the tests on both stores"
	@echo "make install       .venv with everything"
	@echo "make check         format, lint, types, direction of imports, container files, version, words to avoid"
	@echo "make check-english words that the prose avoids"
	@echo "make catalogues    quarantine.pot and the catalogues from code and templates"
	@echo "make docs          docs/settings.md and quarantine.example.toml from the settings"
	@echo "make site          dist/site, the documentation as a site that needs no server"
	@echo "make packages      wheel, Debian package, image, licences and bill of materials, in dist/"
	@echo "make release       the date of CHANGELOG.md's newest section, the version, the hashes of all files"
	@echo "make test-system   with Debian's rspamd, nginx, postfix, PostgreSQL, chromium, firefox-esr; short fault tests"
	@echo "make test-faults   the long reliability tests"
	@echo "make mutants       mutation tests of model, exporter, people and rules"
	@echo "make bench         the benchmarks"

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "on Debian: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python tools/demo.py

quick: install
	$(BIN)/pytest -n auto --quick -m "not system and not faults"

test: install
	$(BIN)/pytest -n auto -m "not system and not faults"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint deploy/container/Containerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/container/compose.yaml
	$(BIN)/python -m tools.version
	$(BIN)/python -m tools.english

check-english: install
	$(BIN)/python -m tools.english

site: install
	$(BIN)/zensical build --strict

release: install
	$(BIN)/python -m tools.version release

catalogues: install
	$(BIN)/python -W ignore -m tools.catalogues

docs: install
	$(BIN)/python -m tools.docs

test-system: install
	tests/system/install-packages
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder -m "system and not apart and not alone"
	$(BIN)/pytest -n 2 --dist loadfile -m "system and apart" --ignore tests/faults
	$(BIN)/pytest -n 2 --dist loadfile -m "system and apart" tests/faults
	$(BIN)/pytest -m "system and alone" tests/faults

test-faults: install
	$(BIN)/pytest -n 2 --dist worksteal -m "faults and not alone"
	$(BIN)/pytest -m "faults and alone"

mutants: install
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt mutmut==3.8.1
	nice -n 19 $(BIN)/mutmut run --max-children 2
	$(BIN)/mutmut results

bench: install
	$(BIN)/python -m bench

packages: install
	$(BIN)/python -m tools.packages

clean:
	rm -rf .venv .cache var dist build mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis
