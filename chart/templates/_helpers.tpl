{{/*
Names are fixed, whatever the release is called: one release serves a cluster, and Helm refuses a second one by its
cluster-wide objects before anything of it is created.
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

{{/*
With existingSecret the object has another name. The caBundle of the usual one is the injector's: taking it over in an
upgrade would be a conflict that leaves the upgrade half done, and one object less is all that there is to a change.
*/}}
{{- define "asya-runtime.webhookConfiguration" -}}
{{- if eq .Values.certificates.mode "existingSecret" -}}
asya-runtime-external-ca
{{- else -}}
asya-runtime
{{- end -}}
{{- end }}

{{/* The Secret that the webhook's certificate comes from. No two modes share one: their types and owners differ. */}}
{{- define "asya-runtime.tlsSecret" -}}
{{- if eq .Values.certificates.mode "self" -}}
asya-runtime-tls
{{- else if eq .Values.certificates.mode "certManager" -}}
asya-runtime-cert-manager
{{- else -}}
{{ .Values.certificates.existingSecret.name }}
{{- end -}}
{{- end }}

{{/* Selectors are immutable: nothing that changes with a version may come in here. */}}
{{- define "asya-runtime.selectorLabels" -}}
app.kubernetes.io/name: asya-injector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Labels of the injector's pods. No version among them: a new chart alone does not restart the injector. */}}
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

{{/* Labels and annotations of an object. Argument: list of the root context and the object's own annotations. */}}
{{- define "asya-runtime.metadata" -}}
{{- $root := index . 0 -}}
labels:
  {{- include "asya-runtime.labels" $root | nindent 2 }}
{{- with merge dict (index . 1) ($root.Values.commonAnnotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The runtime's files as the ConfigMap's data, byte for byte. */}}
{{- define "asya-runtime.data" -}}
{{- $size := 0 }}
{{- range $name := list "asya_entrypoint.py" "asya_runtime.py" }}
{{- $text := $.Files.Get (printf "files/%s" $name) }}
{{- if not $text }}
{{- fail (printf "the chart's files/%s is missing or empty: in a checkout, run `make sync`; otherwise, download the chart again" $name) }}
{{- end }}
{{- $size = add $size (len $text) }}
{{- end }}
{{- if gt $size 921600 }}
{{- fail (printf "the runtime's files have %d bytes; 921600 fit into a ConfigMap beside its metadata" $size) }}
{{- end }}
{{- (.Files.Glob "files/*.py").AsConfig }}
{{- end }}

{{/* One digest over both files. By hand: cd files && sha256sum *.py | sha256sum */}}
{{- define "asya-runtime.sha256" -}}
{{- $listing := "" }}
{{- range $path, $bytes := .Files.Glob "files/*.py" }}
{{- $listing = printf "%s%s  %s\n" $listing (sha256sum (toString $bytes)) (base $path) }}
{{- end }}
{{- sha256sum $listing }}
{{- end }}

{{- define "asya-runtime.image" -}}
{{- with .Values.injector.image }}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) }}
{{- with .digest }}@{{ . }}{{ end }}
{{- end }}
{{- end }}

{{/* What the prune job and the test pod share with the injector's pods: image and place, and contexts that fit both. */}}
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

{{- define "asya-runtime.container" -}}
image: {{ include "asya-runtime.image" . | quote }}
imagePullPolicy: {{ .Values.injector.image.pullPolicy }}
{{- with .Values.injector.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/*
What holds for every actor, as a JSON object of texts. A number from a values file is a float in here, and would be
written as 4.194304e+06. Argument: values of this chart.
*/}}
{{- define "asya-runtime.defaults" -}}
{{- $texts := dict }}
{{- range $name, $value := .runtime.defaults }}
{{- if or (kindIs "string" $value) (kindIs "bool" $value) }}
{{- $_ := set $texts $name (toString $value) }}
{{- else if not (kindIs "invalid" $value) }}
{{- $_ := set $texts $name (regexReplaceAll "\\.?0+$" (printf "%.9f" (float64 $value)) "") }}
{{- end }}
{{- end }}
{{- toJson $texts }}
{{- end }}

{{/* What the injector's process is told, as a JSON object; its namespace it gets from its pod. */}}
{{- define "asya-runtime.environment" -}}
{{- $said := dict
  "INJECTOR_SERVICE" (include "asya-runtime.name" .)
  "INJECTOR_RUNTIME_DIRECTORY" "/etc/asya-runtime"
  "INJECTOR_DEFAULTS" (include "asya-runtime.defaults" .Values)
  "INJECTOR_LOG_LEVEL" .Values.injector.logLevel
  "INJECTOR_WEBHOOK_PORT" (toString (int .Values.webhook.port))
  "INJECTOR_HTTP_PORT" (toString (int .Values.metrics.port)) }}
{{- if eq .Values.certificates.mode "self" }}
{{- $_ := set $said "INJECTOR_TLS_MODE" "self" }}
{{- $_ := set $said "INJECTOR_TLS_SECRET" (include "asya-runtime.tlsSecret" .) }}
{{- $_ := set $said "INJECTOR_WEBHOOK_CONFIGURATION" (include "asya-runtime.webhookConfiguration" .) }}
{{- else }}
{{- $_ := set $said "INJECTOR_TLS_MODE" "files" }}
{{- $_ := set $said "INJECTOR_TLS_DIRECTORY" "/etc/asya-tls" }}
{{- end }}
{{- toJson $said }}
{{- end }}
