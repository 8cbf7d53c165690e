{{/*
What no schema can say, each with a sentence of its own. Nothing comes of it where all is well. Every template asks here
first, because Helm promises no order among them.
*/}}
{{- define "asya-runtime.valid" -}}
{{- include "asya-runtime.valid.complete" . }}
{{- if not (or .Values.runtime.configMap.create (not .Values.injector.enabled)) }}
{{- fail "runtime.configMap.create is off while injector.enabled is on: the injector mounts that ConfigMap" }}
{{- end }}
{{- range $key := keys (.Values.commonLabels | default dict) | sortAlpha }}
{{- include "asya-runtime.valid.label" (list "commonLabels" $key) }}
{{- end }}
{{- range $key := keys (.Values.commonAnnotations | default dict) | sortAlpha }}
{{- include "asya-runtime.valid.annotation" (list "commonAnnotations" $key) }}
{{- end }}
{{- if .Values.injector.enabled }}
{{- include "asya-runtime.valid.injector" . }}
{{- end }}
{{- end }}

{{/* Says yes where the injector is wanted, once everything is found valid. */}}
{{- define "asya-runtime.hasInjector" -}}
{{- include "asya-runtime.valid" . }}
{{- if .Values.injector.enabled }}yes{{ end }}
{{- end }}

{{/* Null takes a value away, and so does an upgrade with --reuse-values from a chart that did not know it. */}}
{{- define "asya-runtime.valid.complete" -}}
{{- $needed := list
  "runtime.configMap.create" "runtime.configMap.name" "runtime.defaults" "injector.enabled" "injector.image.repository"
  "injector.image.pullPolicy" "injector.replicas" "injector.podDisruptionBudget.enabled"
  "injector.podDisruptionBudget.maxUnavailable" "injector.logLevel" "injector.hostNetwork" "webhook.failurePolicy"
  "webhook.timeoutSeconds" "webhook.port" "certificates.mode" "certificates.certManager.duration"
  "certificates.certManager.renewBefore" "certificates.existingSecret" "serviceAccount.create" "rbac.create"
  "prune.enabled" "prune.schedule" "networkPolicy.enabled" "metrics.port" "metrics.service.enabled"
  "metrics.serviceMonitor.enabled" "metrics.serviceMonitor.interval" "tests.enabled" }}
{{- range $path := $needed }}
{{- $found := $.Values }}
{{- range $key := splitList "." $path }}
{{- if $found }}
{{- $found = ternary (get $found $key) nil (hasKey $found $key) }}
{{- end }}
{{- end }}
{{- if kindIs "invalid" $found }}
{{- fail (printf "%s has no value: leave it out rather than setting it to null; in an upgrade from a chart that did not know it, use --reset-then-reuse-values in place of --reuse-values" $path) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Argument: list of the value's path and a label's key. */}}
{{- define "asya-runtime.valid.label" -}}
{{- $own := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/part-of"
  "app.kubernetes.io/managed-by" "app.kubernetes.io/version" "helm.sh/chart" }}
{{- if has (index . 1) $own }}
{{- fail (printf "%s: the label %s is the chart's own; choose another key" (index . 0) (index . 1)) }}
{{- end }}
{{- end }}

{{/* Argument: list of the value's path and an annotation's key. */}}
{{- define "asya-runtime.valid.annotation" -}}
{{- $own := list "checksum/runtime" "kubectl.kubernetes.io/default-container" }}
{{- range $prefix := list "asya.sh/" "helm.sh/" "meta.helm.sh/" }}
{{- if hasPrefix $prefix (index $ 1) }}
{{- $own = append $own (index $ 1) }}
{{- end }}
{{- end }}
{{- if has (index . 1) $own }}
{{- /* With one of ours the injector's own pods would wait for the injector. */}}
{{- fail (printf "%s: the annotation %s is not for this chart's own objects; leave it out" (index . 0) (index . 1)) }}
{{- end }}
{{- end }}

{{- define "asya-runtime.valid.injector" -}}
{{- with .Values.injector }}
{{- if has $.Release.Namespace (list "kube-system" "kube-public" "kube-node-lease") }}
{{- fail (printf "namespace %s is never injected, so `helm test` could show nothing there: install into one of its own, --namespace asya-system --create-namespace" $.Release.Namespace) }}
{{- end }}
{{- range $key := keys (.podLabels | default dict) | sortAlpha }}
{{- include "asya-runtime.valid.label" (list "injector.podLabels" $key) }}
{{- if hasKey ($.Values.commonLabels | default dict) $key }}
{{- fail (printf "injector.podLabels: the label %s is in commonLabels too; leave one out" $key) }}
{{- end }}
{{- end }}
{{- range $key := keys (.podAnnotations | default dict) | sortAlpha }}
{{- include "asya-runtime.valid.annotation" (list "injector.podAnnotations" $key) }}
{{- end }}
{{- range $key := keys ($.Values.metrics.serviceMonitor.labels | default dict) | sortAlpha }}
{{- include "asya-runtime.valid.label" (list "metrics.serviceMonitor.labels" $key) }}
{{- end }}
{{- $seen := list "INJECTOR_NAMESPACE" }}
{{- range $name := keys (fromJson (include "asya-runtime.environment" $)) | sortAlpha }}
{{- $seen = append $seen $name }}
{{- end }}
{{- range .extraEnv }}
{{- if has .name $seen }}
{{- fail (printf "injector.extraEnv: %s is there already, by the chart or twice; a container's variable has one value" .name) }}
{{- end }}
{{- $seen = append $seen .name }}
{{- end }}
{{- $seen = list "runtime" "tls" "tmp" }}
{{- range .extraVolumes }}
{{- if has .name $seen }}
{{- fail (printf "injector.extraVolumes: there is a volume %s already, the chart's or twice; choose another name" .name) }}
{{- end }}
{{- $seen = append $seen .name }}
{{- end }}
{{- $paths := list "/etc/asya-runtime" "/etc/asya-tls" "/tmp" }}
{{- range .extraVolumeMounts }}
{{- if has (trimSuffix "/" .mountPath) $paths }}
{{- fail (printf "injector.extraVolumeMounts: something is mounted at %s already, by the chart or twice; choose another path" .mountPath) }}
{{- end }}
{{- if not (has .name $seen) }}
{{- fail (printf "injector.extraVolumeMounts: there is no volume %s; add it to injector.extraVolumes" .name) }}
{{- end }}
{{- $paths = append $paths (trimSuffix "/" .mountPath) }}
{{- end }}
{{- end }}
{{- if eq (int .Values.webhook.port) (int .Values.metrics.port) }}
{{- fail (printf "webhook.port and metrics.port are both %d; one pod cannot listen twice" (int .Values.webhook.port)) }}
{{- end }}
{{- if not (or .Values.serviceAccount.create .Values.serviceAccount.name) }}
{{- fail "serviceAccount.name is empty while serviceAccount.create is off: name the account; the namespace's default one would share the injector's rights with every pod there" }}
{{- end }}
{{- if eq .Values.certificates.mode "existingSecret" }}
{{- with .Values.certificates.existingSecret }}
{{- if not .name }}
{{- fail "certificates.existingSecret.name is empty: name a Secret of the release namespace with tls.crt and tls.key" }}
{{- end }}
{{- $brought := list }}
{{- range $key := keys ($.Values.webhook.annotations | default dict) }}
{{- if hasPrefix "cert-manager.io/inject-" $key }}
{{- $brought = append $brought $key }}
{{- end }}
{{- end }}
{{- if not (or .caBundle $brought) }}
{{- fail "certificates.existingSecret.caBundle is empty: the API server must know the CA; --set-file certificates.existingSecret.caBundle=ca.crt, or let cert-manager bring it by webhook.annotations" }}
{{- end }}
{{- if and .caBundle $brought }}
{{- fail (printf "certificates.existingSecret.caBundle is given, and webhook.annotations has %s: two would write it; leave one out" (first $brought)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
