# Every target installs what it needs. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
CLUSTER ?= asya
DIST ?= dist
export CLUSTER
export KUBECONFIG := $(CURDIR)/.tools/kubeconfig
export PATH := $(CURDIR)/.tools/bin:$(PATH)
export UV := $(or $(shell command -v uv),$(CURDIR)/.tools/uv/bin/uv)
export PYTHONPATH := $(CURDIR)/injector

bin := .venv/bin
scripts = $(shell git ls-files '*.sh' .ci/run '*/bin/entrypoint')

.PHONY: help
help: ## list the targets
	@printf 'asya-runtime: an annotation turns a Python function of a model image into an actor.\n\n'
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{printf "  make %-14s %s\n", $$1, $$2}'
	@printf '\nSettings: CLUSTER=%s KUBERNETES_VERSION=1.34 PYTHON=%s\n' '$(CLUSTER)' '$(PYTHON)'

# --- Development

.PHONY: deps
deps: .venv/installed ## Python packages of development, into .venv

.venv/installed: requirements-dev.txt $(if $(findstring .tools,$(UV)),$(UV))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Python 3.11 or newer is needed as $(PYTHON) (found: $(shell $(PYTHON) --version 2>&1)): install it, or say make PYTHON=/path/to/python' >&2; exit 1; }
	@echo 'installing Python packages into .venv (usually 10 s)' >&2
	@$(UV) venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" .venv
	@$(UV) pip sync --quiet --python $(bin)/python --require-hashes requirements-dev.txt
	@touch $@

$(CURDIR)/.tools/uv/bin/uv: requirements-uv.txt
	@echo 'installing uv into .tools (usually 5 s)' >&2
	@rm -rf .tools/uv
	@$(PYTHON) -m venv .tools/uv || { echo '$(PYTHON) has no venv module: install it (Debian: apt-get install python3-venv)' >&2; exit 1; }
	@.tools/uv/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.txt
	@touch $@

.PHONY: lock
lock: $(if $(findstring .tools,$(UV)),$(UV)) ## pin the newest allowed versions in requirements*.txt
	@compile() { $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' "$$@"; }; \
	echo 'uv>=0.13' | compile - -o requirements-uv.txt; \
	compile pyproject.toml -o requirements.txt; \
	compile pyproject.toml --group dev -o requirements-dev.txt; \
	compile bench/requirements.in -o requirements-bench.txt

.PHONY: fmt
fmt: deps ## format the code
	@$(bin)/ruff format --quiet .
	@$(bin)/ruff check --quiet --fix .

.PHONY: sync
sync: deps ## regenerate values, schema, tables of the docs, versions, copies of the runtime
	@$(bin)/python -m tests.generated.sync

.PHONY: lint
lint: deps helm ## ruff, mypy, imports, shellcheck, helm lint
	@$(bin)/ruff format --check --quiet . || { echo 'not formatted: make fmt' >&2; exit 1; }
	@$(bin)/ruff check --quiet .
	@$(bin)/mypy --no-error-summary
	@$(bin)/lint-imports --no-logo >build/lint-imports.log 2>&1 || { cat build/lint-imports.log >&2; exit 1; }
	@$(bin)/shellcheck -x --source-path=SCRIPTDIR $(scripts)
	@helm lint --quiet chart
	@echo 'lint: clean'

.PHONY: test
test: deps helm helm3 ## tests that need no cluster, side by side (ARGS=-n0: one by one)
	@$(bin)/pytest tests -n auto --dist worksteal $(ARGS)

.PHONY: test-cov
test-cov: deps helm helm3 ## the same with coverage of the injector
	@$(bin)/pytest tests --cov=asya_injector --cov-report=term-missing --cov-branch $(ARGS)

.PHONY: fuzz
fuzz: deps ## mutated frames against the runtime: FRAMES=1000000, at most half an hour
	@$(bin)/python -m tests.runtime.fuzz --frames $(or $(FRAMES),1000000) $(ARGS)

.PHONY: chart-render
chart-render: deps helm sync ## refresh the chart's golden renderings
	@$(bin)/python -m tests.chart.render

.PHONY: chart-schemas
chart-schemas: deps ## fetch the schemas that the chart's objects are validated against
	@$(bin)/python -m tests.chart.fetch_schemas

.PHONY: package
package: helm ## the chart as an archive in dist/: equal sources give equal bytes
	@cmp -s runtime/asya_runtime.py chart/files/asya_runtime.py && cmp -s runtime/asya_entrypoint.py chart/files/asya_entrypoint.py || { echo 'runtime/ and chart/files/ differ: make sync' >&2; exit 1; }
	@mkdir -p $(DIST)
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct -- chart 2>/dev/null || echo 0) helm package --destination $(DIST) chart >/dev/null
	@cd $(DIST) && sha256sum asya-runtime-$$(sed -n 's/^version: //p' $(CURDIR)/chart/Chart.yaml).tgz

# --- Cluster

.PHONY: helm
helm:
	@mkdir -p build
	@e2e/cluster/tools.sh helm

.PHONY: helm3
helm3:
	@e2e/cluster/tools.sh helm3

.PHONY: cluster
cluster: ## a kind cluster, from nothing if need be
	@e2e/cluster/up.sh

.PHONY: cluster-down
cluster-down: ## remove it
	@e2e/cluster/down.sh

.PHONY: image
image: deps ## the injector's image; loaded into the cluster if that is up
	@e2e/cluster/engine.sh
	@e2e/cluster/injector-image.sh

.PHONY: demo
demo: deps cluster ## the main job: a web application becomes an actor by one annotation
	@INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/python -m examples.demo

.PHONY: demo-clean
demo-clean: deps ## remove what the demo installed
	@$(bin)/python -m examples.demo --clean

.PHONY: e2e
e2e: deps cluster helm3 ## tests in the cluster, side by side (ARGS=-n0: one by one)
	@INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/pytest e2e --ignore e2e/test_cert_manager.py -n 3 --dist loadgroup --no-loadscope-reorder --durations=20 --durations-min=5 $(ARGS)

.PHONY: soak
soak: deps cluster ## steady load for MINUTES=60: nothing may grow
	@INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" SOAK_MINUTES=$(or $(MINUTES),60) $(bin)/pytest e2e/test_soak.py $(ARGS)

.PHONY: e2e-cert-manager
e2e-cert-manager: deps cluster ## certificates by the real cert-manager, which is built first (usually 4 min, once)
	@CERT_MANAGER="$$(e2e/cluster/cert-manager.sh)" INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/pytest e2e/test_cert_manager.py $(ARGS)

# --- All of it

.PHONY: check
check: ## lint, unit, chart and cluster tests, and the demo
	@for part in lint test e2e demo; do $(MAKE) $$part; done; \
	echo "make check: all passed in $$((SECONDS / 60)) min $$((SECONDS % 60)) s"

.PHONY: bench
bench: deps ## speed of runtime and injector, as ratios measured side by side
	@$(bin)/python -m bench.run $(ARGS)

.PHONY: bench-cluster
bench-cluster: deps cluster ## what injection costs a cluster, by the API server's own figures
	@INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/python -m bench.cluster $(ARGS)

.PHONY: clean
clean: ## remove what was built here; caches outside the checkout stay
	@rm -rf build dist .venv .tools .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
