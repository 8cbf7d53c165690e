{{/*
Names are fixed, whatever the release is called: one release serves a cluster, and Helm refuses a second one by its
cluster-wide objects before anything of it is created.
*/}}
{{- define "asya-runtime.name" -}}
asya-runtime
{{- end }}

{{- define "asya-runtime.tlsSecret" -}}
asya-runtime-tls
{{- end }}

{{/* Selectors are immutable: nothing that changes with a version may come in here. */}}
{{- define "asya-runtime.selectorLabels" -}}
app.kubernetes.io/name: asya-injector
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "asya-runtime.labels" -}}
{{ include "asya-runtime.selectorLabels" . }}
app.kubernetes.io/part-of: asya-runtime
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The runtime's files as the data of a ConfigMap; stops where they cannot be one. */}}
{{- define "asya-runtime.data" -}}
{{- $size := 0 }}
{{- range $name := list "asya_entrypoint.py" "asya_runtime.py" }}
{{- $text := $.Files.Get (printf "files/%s" $name) }}
{{- if not $text }}
{{- fail (printf "the chart's files/%s is missing or empty: in a checkout, copy it from runtime/ with `make sync`; else get the chart anew" $name) }}
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

{{/*
What holds for every actor, as a JSON object of texts. A number from a values file is a float in here, and would be
written as 4.194304e+06.
*/}}
{{- define "asya-runtime.defaults" -}}
{{- $texts := dict }}
{{- range $name, $value := .Values.runtime.defaults }}
{{- if or (kindIs "string" $value) (kindIs "bool" $value) }}
{{- $_ := set $texts $name (toString $value) }}
{{- else if not (kindIs "invalid" $value) }}
{{- $_ := set $texts $name (regexReplaceAll "\\.?0+$" (printf "%.9f" (float64 $value)) "") }}
{{- end }}
{{- end }}
{{- toJson $texts }}
{{- end }}
