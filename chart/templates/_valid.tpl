{{/*
Checks that a JSON schema cannot express. It renders nothing, or fails with a message that names the value. All
templates include it first, because Helm does not define the order in which it renders them.
*/}}
{{- define "asya-runtime.valid" -}}
{{- include "asya-runtime.valid.complete" . }}
{{- range $key := keys (.Values.commonLabels | default dict) | sortAlpha }}
{{- include "asya-runtime.valid.label" (list "commonLabels" $key) }}
{{- end }}
{{- range $key := keys (.Values.commonAnnotations | default dict) | sortAlpha }}
{{- include "asya-runtime.valid.annotation" (list "commonAnnotations" $key) }}
{{- end }}
{{- include "asya-runtime.valid.sidecar" . }}
{{- include "asya-runtime.valid.delivery" . }}
{{- if .Values.injector.enabled }}
{{- include "asya-runtime.valid.injector" . }}
{{- end }}
{{- end }}

{{/* Validates all values; renders "yes" if the injector is enabled, otherwise nothing. */}}
{{- define "asya-runtime.hasInjector" -}}
{{- include "asya-runtime.valid" . }}
{{- if .Values.injector.enabled }}yes{{ end }}
{{- end }}

{{/* A value is missing if it is set to null, or after an upgrade with --reuse-values from a chart without it. */}}
{{- define "asya-runtime.valid.complete" -}}
{{- $required := list
  "runtime.configMap.create" "runtime.configMap.name" "runtime.delivery" "runtime.image.repository"
  "runtime.defaults" "sidecar.native" "injector.enabled" "injector.image.repository"
  "injector.image.pullPolicy" "injector.replicas" "injector.podDisruptionBudget.enabled"
  "injector.podDisruptionBudget.maxUnavailable" "injector.logLevel" "injector.hostNetwork" "webhook.failurePolicy"
  "webhook.timeoutSeconds" "webhook.port" "certificates.mode" "certificates.certManager.duration"
  "certificates.certManager.renewBefore" "certificates.existingSecret" "serviceAccount.create" "rbac.create"
  "prune.enabled" "prune.schedule" "networkPolicy.enabled" "metrics.port" "metrics.service.enabled"
  "metrics.serviceMonitor.enabled" "metrics.serviceMonitor.interval" "metrics.podMonitor.enabled"
  "metrics.podMonitor.interval" "metrics.prometheusRule.enabled" "metrics.dashboard.enabled" "tests.enabled" }}
{{- range $path := $required }}
{{- $found := $.Values }}
{{- range $key := splitList "." $path }}
{{- if $found }}
{{- $found = ternary (get $found $key) nil (hasKey $found $key) }}
{{- end }}
{{- end }}
{{- if kindIs "invalid" $found }}
{{- fail (printf "%s must not be null: omit it to use the default; when upgrading with --reuse-values from a chart without this value, use --reset-then-reuse-values instead" $path) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Rejects labels that the chart sets. Arguments: path of the value, and key of the label. */}}
{{- define "asya-runtime.valid.label" -}}
{{- $reserved := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/part-of"
  "app.kubernetes.io/managed-by" "app.kubernetes.io/version" "helm.sh/chart" }}
{{- if has (index . 1) $reserved }}
{{- fail (printf "%s: the chart sets the label %s; choose another key" (index . 0) (index . 1)) }}
{{- end }}
{{- end }}

{{/* Rejects annotations that would break the release. Arguments: path of the value, and key of the annotation. */}}
{{- define "asya-runtime.valid.annotation" -}}
{{- $reserved := list "checksum/runtime" "kubectl.kubernetes.io/default-container" }}
{{- range $prefix := list "asya.sh/" "helm.sh/" "meta.helm.sh/" }}
{{- if hasPrefix $prefix (index $ 1) }}
{{- $reserved = append $reserved (index $ 1) }}
{{- end }}
{{- end }}
{{- if has (index . 1) $reserved }}
{{- /* With an annotation asya.sh/..., the injector's pods would need an injector to be created. */}}
{{- fail (printf "%s: the annotation %s is reserved; remove it" (index . 0) (index . 1)) }}
{{- end }}
{{- end }}

{{- define "asya-runtime.valid.injector" -}}
{{- with .Values.injector }}
{{- if not .image.repository }}
{{- fail "injector.image.repository is required, because the chart in the sources names no image: build and push image and chart with `make release REGISTRY=registry.example.com/team PUSH=1` and install that chart, or name an image that your nodes can pull with --set injector.image.repository=..." }}
{{- end }}
{{- if has $.Release.Namespace (list "kube-system" "kube-public" "kube-node-lease") }}
{{- fail (printf "cannot install into namespace %s, which the injector ignores; use a separate one: --namespace asya-system --create-namespace" $.Release.Namespace) }}
{{- end }}
{{- range $key := keys (.podLabels | default dict) | sortAlpha }}
{{- include "asya-runtime.valid.label" (list "injector.podLabels" $key) }}
{{- if hasKey ($.Values.commonLabels | default dict) $key }}
{{- fail (printf "injector.podLabels: the label %s is also in commonLabels; remove one of the two" $key) }}
{{- end }}
{{- end }}
{{- range $key := keys (.podAnnotations | default dict) | sortAlpha }}
{{- include "asya-runtime.valid.annotation" (list "injector.podAnnotations" $key) }}
{{- end }}
{{- range $object := list "serviceMonitor" "podMonitor" "prometheusRule" "dashboard" }}
{{- range $key := keys ((get $.Values.metrics $object).labels | default dict) | sortAlpha }}
{{- include "asya-runtime.valid.label" (list (printf "metrics.%s.labels" $object) $key) }}
{{- end }}
{{- end }}
{{- $seen := list "INJECTOR_NAMESPACE" }}
{{- range $name := keys (fromJson (include "asya-runtime.environment" $)) | sortAlpha }}
{{- $seen = append $seen $name }}
{{- end }}
{{- range .extraEnv }}
{{- if has .name $seen }}
{{- fail (printf "injector.extraEnv: the variable %s is already set, by the chart or by another entry; remove one of the two" .name) }}
{{- end }}
{{- $seen = append $seen .name }}
{{- end }}
{{- $seen = list "runtime" "tls" "tmp" }}
{{- range .extraVolumes }}
{{- if has .name $seen }}
{{- fail (printf "injector.extraVolumes: a volume %s already exists, in the chart or in another entry; choose another name" .name) }}
{{- end }}
{{- $seen = append $seen .name }}
{{- end }}
{{- $paths := list "/etc/asya-runtime" "/etc/asya-tls" "/tmp" }}
{{- range .extraVolumeMounts }}
{{- if has (trimSuffix "/" .mountPath) $paths }}
{{- fail (printf "injector.extraVolumeMounts: %s is already a mount path, of the chart or of another entry; choose another path" .mountPath) }}
{{- end }}
{{- if not (has .name $seen) }}
{{- fail (printf "injector.extraVolumeMounts: the volume %s does not exist; add it to injector.extraVolumes" .name) }}
{{- end }}
{{- $paths = append $paths (trimSuffix "/" .mountPath) }}
{{- end }}
{{- end }}
{{- if eq (int .Values.webhook.port) (int .Values.metrics.port) }}
{{- fail (printf "webhook.port and metrics.port are both %d; choose two different ports" (int .Values.webhook.port)) }}
{{- end }}
{{- if not (or .Values.serviceAccount.create .Values.serviceAccount.name) }}
{{- fail "serviceAccount.name is required if serviceAccount.create is false: the namespace's default account would share the injector's permissions with other pods" }}
{{- end }}
{{- if eq .Values.certificates.mode "existingSecret" }}
{{- with .Values.certificates.existingSecret }}
{{- if not .name }}
{{- fail "certificates.existingSecret.name is required: set it to a Secret in the release namespace with tls.crt and tls.key" }}
{{- end }}
{{- $injected := list }}
{{- range $key := keys ($.Values.webhook.annotations | default dict) }}
{{- if hasPrefix "cert-manager.io/inject-" $key }}
{{- $injected = append $injected $key }}
{{- end }}
{{- end }}
{{- if not (or .caBundle $injected) }}
{{- fail "certificates.existingSecret.caBundle is required: set it with --set-file certificates.existingSecret.caBundle=ca.crt, or add a cert-manager.io/inject-ca-from annotation to webhook.annotations" }}
{{- end }}
{{- if and .caBundle $injected }}
{{- fail (printf "certificates.existingSecret.caBundle conflicts with %s in webhook.annotations; remove one of the two" (first $injected)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
