#!/bin/sh
# Inject the runtime into the manifests of a release. Helm passes --post-renderer-args.
exec asya-injector inject --keep-with helm -n "${HELM_NAMESPACE:-}" "$@"
