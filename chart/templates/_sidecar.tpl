{{/*
The value `sidecar` as JSON for the injector. The kubelet expands $(NAME) in the variables of a container, so each `$` is
escaped.
*/}}
{{- define "asya-runtime.sidecar" -}}
{{- toJson .Values.sidecar | replace "$" "\\u0024" }}
{{- end }}

{{/* Rejects a sidecar that the injector would reject at its start, in the same words. */}}
{{- define "asya-runtime.valid.sidecar" -}}
{{- $container := .Values.sidecar.container | default dict }}
{{- $lifecycle := $container.lifecycle | default dict }}
{{- range $name := list "annotations" "volumes" "imagePullSecrets" }}
{{- if and (get $.Values.sidecar $name) (not $container) }}
{{- fail (printf "sidecar.%s: is set without sidecar.container; set both or none" $name) }}
{{- end }}
{{- end }}
{{- if $container }}
{{- if gt (len (toJson .Values.sidecar)) 60000 }}
{{- fail "sidecar: has more than 60000 bytes as JSON; shorten it" }}
{{- end }}
{{- if hasKey $container "startupProbe" }}
{{- fail "sidecar.container.startupProbe: would keep the model from starting, because it starts after the sidecar; use a readinessProbe" }}
{{- end }}
{{- if hasKey $lifecycle "postStart" }}
{{- fail "sidecar.container.lifecycle.postStart: would keep the model from starting, because it starts after the sidecar; do this work in the sidecar's program" }}
{{- end }}
{{- if hasKey $container "restartPolicy" }}
{{- fail "sidecar.container.restartPolicy: is set by sidecar.native; remove it" }}
{{- end }}
{{- if not $container.name }}
{{- fail "sidecar.container.name: is required; set it to a name such as asya-sidecar" }}
{{- end }}
{{- if not $container.image }}
{{- fail "sidecar.container.image: is required; set it to an image" }}
{{- end }}
{{- $names := list }}
{{- range .Values.sidecar.volumes }}
{{- if has .name (list "asya-runtime" "asya-socket") }}
{{- fail (printf "sidecar.volumes: the injector adds the volume %s; choose another name" .name) }}
{{- end }}
{{- if has .name $names }}
{{- fail (printf "sidecar.volumes: two volumes have the name %s; choose another name" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- range $field := list "volumeMounts" "volumeDevices" }}
{{- range get $container $field | default list }}
{{- if has .name (list "asya-runtime" "asya-socket") }}
{{- fail (printf "sidecar.container.%s: the injector mounts %s where needed; remove it" $field .name) }}
{{- end }}
{{- if not (has .name $names) }}
{{- fail (printf "sidecar.container.%s: the volume %s does not exist; add it to sidecar.volumes" $field .name) }}
{{- end }}
{{- end }}
{{- end }}
{{- include "asya-runtime.valid.sidecar.annotations" . }}
{{- end }}
{{- end }}

{{- define "asya-runtime.valid.sidecar.annotations" -}}
{{- $reserved := (fromJson (include "asya-runtime.actor.tables" .)).reserved }}
{{- $keys := dict }}
{{- range $key := keys (.Values.sidecar.annotations | default dict) | sortAlpha }}
{{- $env := (get $.Values.sidecar.annotations $key).env }}
{{- if has $key $reserved }}
{{- fail (printf "sidecar.annotations: %s is a key of asya-runtime; choose another key" $key) }}
{{- end }}
{{- if eq $env "ASYA_SOCKET_PATH" }}
{{- fail (printf "sidecar.annotations: the injector sets %s; choose another variable" $env) }}
{{- end }}
{{- if hasKey $keys $env }}
{{- fail (printf "sidecar.annotations: %s and %s set %s; choose another variable" (get $keys $env) $key $env) }}
{{- end }}
{{- $_ := set $keys $env $key }}
{{- end }}
{{- end }}
