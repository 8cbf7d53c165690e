{{/*
For charts that depend on this one and make actors without the injector: what it would add to a pod, as text to be
indented. `.` is the root context of the chart that asks; settings are this chart's values there (runtime.defaults).

  include "asya-runtime.volumes" .                             for the pod
  include "asya-runtime.volumeMounts" .                        for the model's container
  include "asya-runtime.env" (list . "my_app.handler.predict")
  include "asya-runtime.command" (list . "python3" "-m" "app") the container's command, with the runtime beside it;
                                                               without words, the runtime alone
  include "asya-runtime.readinessProbe" (list . "python3" "-m" "app")
  include "asya-runtime.sidecar.volumeMounts" .                for the container that sends the messages
  include "asya-runtime.sidecar.env" .
*/}}
{{- define "asya-runtime.volumes" -}}
{{- $values := fromJson (include "asya-runtime.actor" .) -}}
- name: asya-runtime
  configMap:
    name: {{ $values.configMap }}
    defaultMode: 0444
- name: asya-socket
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- end }}

{{- define "asya-runtime.volumeMounts" -}}
{{- $values := fromJson (include "asya-runtime.actor" .) -}}
- name: asya-runtime
  mountPath: {{ $values.directory }}
  readOnly: true
{{- if $values.isOneFile }}
- name: asya-runtime
  mountPath: {{ $values.file }}
  subPath: asya_runtime.py
  readOnly: true
{{- end }}
{{ include "asya-runtime.sidecar.volumeMounts" . }}
{{- end }}

{{- define "asya-runtime.sidecar.volumeMounts" -}}
{{- $values := fromJson (include "asya-runtime.actor" .) -}}
- name: asya-socket
  mountPath: {{ dir (get $values.defaults "socket-path") }}
{{- end }}

{{- define "asya-runtime.sidecar.env" -}}
{{- $values := fromJson (include "asya-runtime.actor" .) -}}
- name: ASYA_SOCKET_PATH
  value: {{ get $values.defaults "socket-path" | quote }}
{{- end }}

{{- define "asya-runtime.env" -}}
{{- $values := fromJson (include "asya-runtime.actor" (index . 0)) -}}
{{- $handler := toString (index . 1) -}}
{{- if not (regexMatch "^[A-Za-z_][A-Za-z0-9_]*([.][A-Za-z_][A-Za-z0-9_]*)+$" $handler) }}
{{- fail (printf "asya-runtime.env: %q is no handler; it must be module.path.function" $handler) }}
{{- end -}}
- name: ASYA_HANDLER
  value: {{ $handler | quote }}
{{- range $setting := $values.settings }}
{{- $said := get $values.defaults $setting.name }}
{{- if or (eq $setting.name "socket-path") (ne $said $setting.default) }}
- name: {{ $setting.env }}
  value: {{ $said | quote }}
{{- end }}
{{- end }}
# Only the containers that mount this directory can reach the socket, whatever their users.
- name: ASYA_SOCKET_MODE
  value: "0666"
{{- end }}

{{- define "asya-runtime.command" -}}
{{- $values := fromJson (include "asya-runtime.actor" (index . 0)) -}}
{{- $words := rest . }}
{{- $command := list (include "asya-runtime.actor.python" (list $values $words)) }}
{{- if $words }}
{{- $command = concat $command (list "-I" "-S" (printf "%s/asya_entrypoint.py" $values.directory)) }}
{{- if $values.isOneFile }}
{{- $command = concat $command (list "--runtime" $values.file) }}
{{- end }}
{{- $command = concat $command (list "--") $words }}
{{- else }}
{{- $command = append $command $values.file }}
{{- end }}
{{- toYaml $command }}
{{- end }}

{{- define "asya-runtime.readinessProbe" -}}
{{- $values := fromJson (include "asya-runtime.actor" (index . 0)) -}}
exec:
  command:
    {{- toYaml (list (include "asya-runtime.actor.python" (list $values (rest .))) "-I" "-S" $values.file "--ready") | nindent 4 }}
periodSeconds: 5
# A probe starts an interpreter, which can take seconds on a busy node.
timeoutSeconds: 10
{{- end }}

{{/* The interpreter: the one that the command names, if any. Argument: list of what `actor` gives and the command. */}}
{{- define "asya-runtime.actor.python" -}}
{{- $first := first (index . 1) | default "" | toString }}
{{- if regexMatch "^(python|pypy)[0-9]*([.][0-9]+)*$" (base $first) }}
{{- $first }}
{{- else }}
{{- get (index . 0).defaults "python" }}
{{- end }}
{{- end }}

{{/*
What holds for actors in the chart that asks, as JSON. The settings that become variables are the injector's table of
annotations, in its order and with its defaults; a test compares them.
*/}}
{{- define "asya-runtime.actor" -}}
{{- $values := dict }}
{{- /* Known by its values: under an alias it has another name. */}}
{{- range .Subcharts }}
{{- $runtime := ternary .Values.runtime nil (hasKey .Values "runtime") }}
{{- if and (kindIs "map" $runtime) (hasKey ($runtime | default dict) "configMap") (hasKey ($runtime | default dict) "defaults") }}
{{- $values = .Values }}
{{- end }}
{{- end }}
{{- if not $values }}
{{- fail (printf "chart %s uses a helper of asya-runtime, which is none of its dependencies or is switched off" .Chart.Name) }}
{{- end }}
{{- $settings := list
  (dict "name" "socket-path" "env" "ASYA_SOCKET_PATH" "default" "/tmp/sockets/app.sock")
  (dict "name" "include-metadata" "env" "ASYA_INCLUDE_METADATA" "default" "false")
  (dict "name" "chunk-size" "env" "ASYA_CHUNK_SIZE" "default" "4096")
  (dict "name" "handler-timeout" "env" "ASYA_HANDLER_TIMEOUT" "default" "0")
  (dict "name" "enable-oom-detection" "env" "ASYA_ENABLE_OOM_DETECTION" "default" "true")
  (dict "name" "cuda-cleanup-on-oom" "env" "ASYA_CUDA_CLEANUP_ON_OOM" "default" "true")
  (dict "name" "concurrency" "env" "ASYA_CONCURRENCY" "default" "1")
  (dict "name" "max-message-size" "env" "ASYA_MAX_MESSAGE_SIZE" "default" "4294967295")
  (dict "name" "read-timeout" "env" "ASYA_READ_TIMEOUT" "default" "60")
  (dict "name" "json" "env" "ASYA_JSON" "default" "stdlib") }}
{{- $defaults := dict "python" "python3" "mount-path" "/opt/asya" }}
{{- range $settings }}
{{- $_ := set $defaults .name .default }}
{{- end }}
{{- $defaults = mergeOverwrite $defaults (fromJson (include "asya-runtime.defaults" $values)) }}
{{- $path := get $defaults "mount-path" }}
{{- $isOneFile := hasSuffix ".py" $path }}
{{- $directory := ternary "/opt/asya" $path $isOneFile }}
{{- $file := ternary $path (printf "%s/asya_runtime.py" $path) $isOneFile }}
{{- toJson (dict "configMap" $values.runtime.configMap.name "settings" $settings "defaults" $defaults
  "directory" $directory "file" $file "isOneFile" (ne (dir $file) $directory)) }}
{{- end }}
