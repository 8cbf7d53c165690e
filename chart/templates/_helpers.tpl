{{/*
Names do not depend on the release name: a cluster has one release. Helm rejects a second one because of its
cluster-wide objects, before it creates anything.
*/}}
{{- define "asya-runtime.name" -}}
asya-runtime
{{- end }}

{{- define "asya-runtime.account" -}}
{{- .Values.serviceAccount.name | default (include "asya-runtime.name" .) }}
{{- end }}

{{- define "asya-runtime.pruneAccount" -}}
asya-runtime-prune
{{- end }}

{{/* The policy for runtime ConfigMaps; it applies to every user. */}}
{{- define "asya-runtime.immutablePolicy" -}}
asya-runtime-immutable
{{- end }}

{{/*
With existingSecret the object has another name, because there Helm sets the caBundle. In the other modes the injector
or cert-manager does, and an upgrade that took over this field would fail half-way with a conflict. With two names, a
change of the mode creates one object and deletes the other.
*/}}
{{- define "asya-runtime.webhookConfiguration" -}}
{{- if eq .Values.certificates.mode "existingSecret" -}}
asya-runtime-external-ca
{{- else -}}
asya-runtime
{{- end -}}
{{- end }}

{{/* The Secret with the webhook's certificate. Each mode has its own, because the types and owners differ. */}}
{{- define "asya-runtime.tlsSecret" -}}
{{- if eq .Values.certificates.mode "self" -}}
asya-runtime-tls
{{- else if eq .Values.certificates.mode "certManager" -}}
asya-runtime-cert-manager
{{- else -}}
{{ .Values.certificates.existingSecret.name }}
{{- end -}}
{{- end }}

{{/* Selectors are immutable, so do not add labels that change with the version. */}}
{{- define "asya-runtime.selectorLabels" -}}
app.kubernetes.io/name: asya-injector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of the injector's pods. They omit the version, so that a new chart version alone does not restart them. */}}
{{- define "asya-runtime.podLabels" -}}
{{ include "asya-runtime.selectorLabels" . }}
app.kubernetes.io/part-of: asya-runtime
{{- end }}

{{- define "asya-runtime.labels" -}}
{{ include "asya-runtime.podLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Labels and annotations of an object. Arguments: the root context, and annotations of this object only. */}}
{{- define "asya-runtime.metadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "asya-runtime.labels" $root | nindent 2 }}
{{- with merge dict (index . 1) ($root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The runtime files as data of the ConfigMap, byte for byte. */}}
{{- define "asya-runtime.data" -}}
{{- $size := 0 }}
{{- range $name := list "asya_entrypoint.py" "asya_runtime.py" }}
{{- $text := $.Files.Get (printf "files/%s" $name) }}
{{- if not $text }}
{{- fail (printf "files/%s of the chart is missing or empty: in a checkout, run `make sync`; otherwise, download the chart again" $name) }}
{{- end }}
{{- $size = add $size (len $text) }}
{{- end }}
{{- if gt $size 921600 }}
{{- fail (printf "the runtime files have %d bytes, but a ConfigMap holds at most 921600 beside its metadata" $size) }}
{{- end }}
{{- (.Files.Glob "files/*.py").AsConfig }}
{{- end }}

{{/* One digest over both files, as printed by: cd files && sha256sum *.py | sha256sum */}}
{{- define "asya-runtime.sha256" -}}
{{- $listing := "" }}
{{- range $path, $bytes := .Files.Glob "files/*.py" }}
{{- $listing = printf "%s%s  %s\n" $listing (sha256sum (toString $bytes)) (base $path) }}
{{- end }}
{{- sha256sum $listing }}
{{- end }}

{{- define "asya-runtime.image" -}}
{{- include "asya-runtime.reference" (list . .Values.injector.image) }}
{{- end }}

{{/* The reference of an image. Arguments: the root context, and repository, tag and digest. */}}
{{- define "asya-runtime.reference" -}}
{{- with index . 1 }}
{{- printf "%s:%s" .repository (.tag | default (index $ 0).Chart.AppVersion) }}
{{- with .digest }}@{{ . }}{{ end }}
{{- end }}
{{- end }}

{{/* Pod fields that the injector, the prune job and the test pod share. */}}
{{- define "asya-runtime.placement" -}}
enableServiceLinks: false
{{- with .Values.injector.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.injector.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.injector.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.injector.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Container fields that the injector, the prune job and the test pod share. */}}
{{- define "asya-runtime.container" -}}
image: {{ include "asya-runtime.image" . | quote }}
imagePullPolicy: {{ .Values.injector.image.pullPolicy }}
{{- with .Values.injector.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
runtime.defaults as a JSON object of strings. Helm reads numbers in values files as floats, which would be printed as
4.194304e+06. Argument: values of this chart.
*/}}
{{- define "asya-runtime.defaults" -}}
{{- $strings := dict }}
{{- range $name, $value := .runtime.defaults }}
{{- if or (kindIs "string" $value) (kindIs "bool" $value) }}
{{- $_ := set $strings $name (toString $value) }}
{{- else if not (kindIs "invalid" $value) }}
{{- $_ := set $strings $name (regexReplaceAll "\\.?0+$" (printf "%.9f" (float64 $value)) "") }}
{{- end }}
{{- end }}
{{- toJson $strings }}
{{- end }}

{{/* Environment variables of the injector as a JSON object. Its namespace is not included: it is a field of the pod. */}}
{{- define "asya-runtime.environment" -}}
{{- $env := dict
  "INJECTOR_SERVICE" (include "asya-runtime.name" .)
  "INJECTOR_RUNTIME_DIRECTORY" (ternary "/asya-runtime" "/etc/asya-runtime" (ne (include "asya-runtime.mountsImage" .) ""))
  "INJECTOR_DEFAULTS" (include "asya-runtime.defaults" .Values)
  "INJECTOR_LOG_LEVEL" .Values.injector.logLevel
  "INJECTOR_WEBHOOK_PORT" (toString (int .Values.webhook.port))
  "INJECTOR_HTTP_PORT" (toString (int .Values.metrics.port)) }}
{{- if .Values.sidecar.container }}
{{- $_ := set $env "INJECTOR_SIDECAR" (include "asya-runtime.sidecar" .) }}
{{- end }}
{{- if include "asya-runtime.mountsImage" . }}
{{- $_ := set $env "INJECTOR_IMAGE" (include "asya-runtime.image" .) }}
{{- $_ := set $env "INJECTOR_RUNTIME_IMAGE" (include "asya-runtime.runtimeImage" .) }}
{{- $_ := set $env "INJECTOR_RUNTIME_PULL_POLICY" (.Values.runtime.image.pullPolicy | default .Values.injector.image.pullPolicy) }}
{{- end }}
{{- if eq .Values.certificates.mode "self" }}
{{- $_ := set $env "INJECTOR_TLS_MODE" "self" }}
{{- $_ := set $env "INJECTOR_TLS_SECRET" (include "asya-runtime.tlsSecret" .) }}
{{- $_ := set $env "INJECTOR_WEBHOOK_CONFIGURATION" (include "asya-runtime.webhookConfiguration" .) }}
{{- else }}
{{- $_ := set $env "INJECTOR_TLS_MODE" "files" }}
{{- $_ := set $env "INJECTOR_TLS_DIRECTORY" "/etc/asya-tls" }}
{{- end }}
{{- toJson $env }}
{{- end }}
