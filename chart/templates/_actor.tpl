{{/*
Helpers for charts that depend on this one and create actors without the injector. Each renders what the injector would
add to a pod; indent it with `nindent`. `.` is the root context of the calling chart. The settings are the values of
this chart there, under runtime.defaults.

  include "asya-runtime.volumes" .                             volumes of the pod
  include "asya-runtime.volumeMounts" .                        volume mounts of the container with the handler
  include "asya-runtime.env" (list . "my_app.handler.predict") its environment variables
  include "asya-runtime.command" (list . "python3" "-m" "app") its command, which starts the runtime beside the program
                                                               `python3 -m app`; without a program, the runtime alone
  include "asya-runtime.readinessProbe" (list . "python3" "-m" "app")
                                                               its readiness probe, for the same program
  include "asya-runtime.ports" .                               its container ports: that of the metrics, or nothing
  include "asya-runtime.sidecar.volumeMounts" .                volume mounts of the sidecar that sends the messages
  include "asya-runtime.sidecar.env" .                         its environment variables

With `runtime.delivery: image` among these values, the volume is that image; otherwise, the ConfigMap of the release.
The container of the value `sidecar` is not rendered: only the injector adds it.
*/}}
{{- define "asya-runtime.volumes" -}}
{{- $values := fromJson (include "asya-runtime.actor" .) -}}
- name: asya-runtime
{{- if $values.image }}
  image:
    reference: {{ $values.image | quote }}
    pullPolicy: {{ $values.pullPolicy }}
{{- else }}
  configMap:
    name: {{ $values.configMap }}
    defaultMode: 0444
{{- end }}
- name: asya-socket
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- end }}

{{- define "asya-runtime.volumeMounts" -}}
{{- $values := fromJson (include "asya-runtime.actor" .) -}}
- name: asya-runtime
  mountPath: {{ $values.directory }}
{{- if $values.image }}
  subPath: asya-runtime
{{- end }}
  readOnly: true
{{- if $values.isOneFile }}
- name: asya-runtime
  mountPath: {{ $values.file }}
  subPath: asya_runtime.py
  readOnly: true
{{- end }}
{{ include "asya-runtime.sidecar.volumeMounts" . }}
{{- end }}

{{- define "asya-runtime.ports" -}}
{{- $values := fromJson (include "asya-runtime.actor" .) -}}
{{- $port := get $values.defaults "metrics-port" -}}
{{- if ne $port "0" -}}
- name: asya-metrics
  containerPort: {{ $port }}
  protocol: TCP
{{- end }}
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
{{- if not (regexMatch $values.tables.handler $handler) }}
{{- fail (printf "asya-runtime.env: %q is not a valid handler; must be module.path.function" $handler) }}
{{- end -}}
- name: ASYA_HANDLER
  value: {{ $handler | quote }}
{{- range $setting := $values.tables.settings }}
{{- $value := get $values.defaults $setting.name }}
{{- if or (eq $setting.name "socket-path") (ne $value (get $values.tables.defaults $setting.name)) }}
- name: {{ $setting.env }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
# Any user may connect: only the containers that mount this directory can reach the socket.
- name: ASYA_SOCKET_MODE
  value: "0666"
{{- end }}

{{- define "asya-runtime.command" -}}
{{- $values := fromJson (include "asya-runtime.actor" (index . 0)) -}}
{{- $words := rest . }}
{{- $wrapper := list (include "asya-runtime.actor.python" (list $values $words)) }}
{{- $command := $wrapper }}
{{- if $words }}
{{- $end := int (include "asya-runtime.actor.launcherEnd" (list $values $words)) }}
{{- $wrapper = concat $wrapper (list "-I" "-S" (printf "%s/asya_entrypoint.py" $values.directory)) }}
{{- if $values.isOneFile }}
{{- $wrapper = concat $wrapper (list "--runtime" $values.file) }}
{{- end }}
{{- $command = concat (slice $words 0 $end) $wrapper (list "--") (slice $words $end) }}
{{- else }}
{{- $command = append $command $values.file }}
{{- end }}
{{- toYaml $command }}
{{- end }}

{{- define "asya-runtime.readinessProbe" -}}
{{- $values := fromJson (include "asya-runtime.actor" (index . 0)) -}}
{{- $python := include "asya-runtime.actor.python" (list $values (rest .)) }}
{{- $command := list $python "-I" "-S" (printf "%s/asya_entrypoint.py" $values.directory) "--ready" }}
{{- if $values.isOneFile }}
{{- $command = concat $command (list "--runtime" $values.file) }}
{{- end -}}
exec:
  command:
    {{- toYaml $command | nindent 4 }}
periodSeconds: 5
# The probe starts an interpreter, which can take seconds on a busy node.
timeoutSeconds: 10
{{- end }}

{{/*
The interpreter for runtime and wrapper: the program of the command if it is one, otherwise the default. Init programs
such as tini, and launchers such as vault-env, are skipped with their options. Arguments: the result of "asya-runtime.actor", and the command.
*/}}
{{- define "asya-runtime.actor.python" -}}
{{- $values := index . 0 }}
{{- $tables := $values.tables }}
{{- $program := "" }}
{{- $found := false }}
{{- $inOptions := false }}
{{- $isOptionValue := false }}
{{- $inLauncher := false }}
{{- $words := index . 1 }}
{{- range $i, $word := $words }}
{{- $word = toString $word }}
{{- $start := printf "%s %v" (last (splitList "/" $word)) (first (rest (slice $words $i))) }}
{{- if $found }}
{{- else if $inLauncher }}
{{- $inLauncher = ne $word "--" }}
{{- else if $isOptionValue }}
{{- $isOptionValue = false }}
{{- else if and $inOptions (hasPrefix "-" $word) }}
{{- $inOptions = ne $word "--" }}
{{- $isOptionValue = has $word $tables.initOptionsWithValue }}
{{- else if has (last (splitList "/" $word)) (concat $tables.initPrograms $tables.launchers) }}
{{- $inOptions = true }}
{{- else if has $start $tables.subcommandLaunchers }}
{{- $inOptions = false }}
{{- $inLauncher = true }}
{{- else }}
{{- $program = $word }}
{{- $found = true }}
{{- end }}
{{- end }}
{{- ternary $program (get $values.defaults "python") (regexMatch $tables.interpreter (printf "/%s" $program)) }}
{{- end }}

{{/*
Number of the command's first words that stay before the wrapper: a launcher such as vault-env, with its options and
with what starts it. Arguments: the result of "asya-runtime.actor", and the command.
*/}}
{{- define "asya-runtime.actor.launcherEnd" -}}
{{- $values := index . 0 }}
{{- $words := index . 1 }}
{{- $tables := $values.tables }}
{{- $end := 0 }}
{{- $found := false }}
{{- $inOptions := false }}
{{- $isOptionValue := false }}
{{- $isLauncher := false }}
{{- $inLauncher := false }}
{{- range $i, $word := $words }}
{{- $word = toString $word }}
{{- $start := printf "%s %v" (last (splitList "/" $word)) (first (rest (slice $words $i))) }}
{{- if $found }}
{{- else if $inLauncher }}
{{- $inLauncher = ne $word "--" }}
{{- else if $isOptionValue }}
{{- $isOptionValue = false }}
{{- else if and $inOptions (hasPrefix "-" $word) }}
{{- $inOptions = ne $word "--" }}
{{- $isOptionValue = has $word $tables.initOptionsWithValue }}
{{- else }}
{{- if $isLauncher }}
{{- $end = $i }}
{{- end }}
{{- $inLauncher = has $start $tables.subcommandLaunchers }}
{{- $inOptions = not $inLauncher }}
{{- $isLauncher = or $inLauncher (has (last (splitList "/" $word)) $tables.launchers) }}
{{- $found = not (or $isLauncher (has (last (splitList "/" $word)) $tables.initPrograms)) }}
{{- end }}
{{- end }}
{{- $end }}
{{- end }}

{{/*
The settings of actors in the calling chart, as JSON: `defaults` has the values that apply, `tables` those of the
injector (_tables.tpl).
*/}}
{{- define "asya-runtime.actor" -}}
{{- $chart := dict }}
{{- /* An alias changes the dependency's name, so look for its values. */}}
{{- range .Subcharts }}
{{- $runtime := ternary .Values.runtime nil (hasKey .Values "runtime") }}
{{- if and (kindIs "map" $runtime) (hasKey ($runtime | default dict) "configMap") (hasKey ($runtime | default dict) "defaults") }}
{{- $chart = . }}
{{- end }}
{{- end }}
{{- if not $chart }}
{{- fail (printf "chart %s uses a template helper of asya-runtime, which is not an enabled dependency; add asya-runtime to the dependencies in Chart.yaml" .Chart.Name) }}
{{- end }}
{{- $values := $chart.Values }}
{{- $image := "" }}
{{- if include "asya-runtime.mountsImage" $chart }}
{{- if not (or $values.runtime.image.repository $values.injector.image.repository) }}
{{- fail (printf "chart %s uses runtime.delivery: image of asya-runtime, which names no image; set runtime.image.repository to an image with the runtime files" .Chart.Name) }}
{{- end }}
{{- $image = include "asya-runtime.runtimeImage" $chart }}
{{- end }}
{{- $tables := fromJson (include "asya-runtime.actor.tables" .) }}
{{- $defaults := mergeOverwrite (deepCopy $tables.defaults) (fromJson (include "asya-runtime.defaults" $values)) }}
{{- $path := get $defaults "mount-path" }}
{{- $isOneFile := hasSuffix ".py" $path }}
{{- $directory := ternary (get $tables.defaults "mount-path") $path $isOneFile }}
{{- $file := ternary $path (printf "%s/asya_runtime.py" $path) $isOneFile }}
{{- toJson (dict "configMap" $values.runtime.configMap.name
  "image" $image "pullPolicy" ($values.runtime.image.pullPolicy | default $values.injector.image.pullPolicy) "tables" $tables "defaults" $defaults
  "directory" $directory "file" $file "isOneFile" (ne (dir $file) $directory)) }}
{{- end }}
