{{/*
Match conditions in CEL: the API server sends an object to the injector only if they are true. An expression that fails
rejects the object, so test each optional field with has() first.

An object may have thousands of annotations that do not concern the injector. Therefore:
- Each webhook has one condition. The API server evaluates all conditions of a webhook, but within one `&&` stops it.
- The condition begins with a test whether the text `asya.sh/` occurs in any annotation.
- No macro iterates over annotations with `&&`, `||` or `?:` inside, as exists(), all() and filter() do: the time that
  the API server takes for this grows with the square of their number.
*/}}

{{/* List with the pod template of a workload, or an empty list. Argument: variable of the workload. */}}
{{- define "asya-runtime.cel.templates" -}}
(!has({{ . }}.spec) ? [] :
  has({{ . }}.spec.template) ? [{{ . }}.spec.template] :
  has({{ . }}.spec.jobTemplate) && has({{ . }}.spec.jobTemplate.spec) && has({{ . }}.spec.jobTemplate.spec.template) ?
    [{{ . }}.spec.jobTemplate.spec.template] : [])
{{- end }}

{{/* Annotations of an object or pod template, or an empty map. Argument: its variable. */}}
{{- define "asya-runtime.cel.annotations" -}}
(has({{ . }}.metadata) && has({{ . }}.metadata.annotations) ? {{ . }}.metadata.annotations : {})
{{- end }}

{{/* Annotations of a CronJob's Job template, or an empty map. Argument: variable of the workload. */}}
{{- define "asya-runtime.cel.jobAnnotations" -}}
(has({{ . }}.spec) && has({{ . }}.spec.jobTemplate) && has({{ . }}.spec.jobTemplate.metadata) &&
  has({{ . }}.spec.jobTemplate.metadata.annotations) ? {{ . }}.spec.jobTemplate.metadata.annotations : {})
{{- end }}

{{/* Whether a map has an asya.sh/ key. Argument: variable of the map. */}}
{{- define "asya-runtime.cel.hasKey" -}}
true in {{ . }}.map(key, key.startsWith('asya.sh/'))
{{- end }}

{{/* Whether asya.sh/inject is "false" on an object or pod template. Argument: its variable. */}}
{{- define "asya-runtime.cel.isDisabled" -}}
has({{ . }}.metadata) && has({{ . }}.metadata.annotations) && 'asya.sh/inject' in {{ . }}.metadata.annotations && {{ . }}.metadata.annotations['asya.sh/inject'] == 'false'
{{- end }}

{{/*
Whether an update adds, changes or removes an asya.sh/ annotation of the workload itself or of a CronJob's Job template:
an asya.sh/ key has another value, or none, in the other map.
*/}}
{{- define "asya-runtime.cel.keysChange" -}}
[[{{ include "asya-runtime.cel.annotations" "object" }}, {{ include "asya-runtime.cel.annotations" "oldObject" }}],
[{{ include "asya-runtime.cel.annotations" "oldObject" }}, {{ include "asya-runtime.cel.annotations" "object" }}],
[{{ include "asya-runtime.cel.jobAnnotations" "object" }}, {{ include "asya-runtime.cel.jobAnnotations" "oldObject" }}],
[{{ include "asya-runtime.cel.jobAnnotations" "oldObject" }}, {{ include "asya-runtime.cel.jobAnnotations" "object" }}]]
.exists(pair, [true, true] in pair[0].map(key, [key.startsWith('asya.sh/'), pair[0][?key] != pair[1][?key]]))
{{- end }}

{{/* Propagated annotations in the pod template of a workload, as a list. Argument: variable of the workload. */}}
{{- define "asya-runtime.cel.propagated" -}}
{{ include "asya-runtime.cel.templates" . }}
.map(each, has(each.metadata) && has(each.metadata.annotations) &&
  'asya.sh/inherited' in each.metadata.annotations ? each.metadata.annotations['asya.sh/inherited'] : '')
{{- end }}

{{/*
Whether the injector may have to propagate annotations to the pod template. A workload that is admitted without this
creates pods without the runtime. Other updates are only validated, and its pods are validated again.
*/}}
{{- define "asya-runtime.cel.needsPropagation" -}}
(request.operation != 'UPDATE' ||
{{ include "asya-runtime.cel.propagated" "object" }} !=
{{ include "asya-runtime.cel.propagated" "oldObject" }} ||
'' in {{ include "asya-runtime.cel.propagated" "object" }} &&
[{{ include "asya-runtime.cel.annotations" "object" }}, {{ include "asya-runtime.cel.jobAnnotations" "object" }}]
.exists(annotations, {{ include "asya-runtime.cel.hasKey" "annotations" }}) ||
{{ include "asya-runtime.cel.keysChange" . }})
{{- end }}

{{/* Whether any of several maps has an asya.sh/ key. Argument: the list of them, in CEL. */}}
{{- define "asya-runtime.cel.anyHasKey" -}}
'%s'.format([{{ . }}]).contains('asya.sh/') &&
{{ . }}.exists(annotations, {{ include "asya-runtime.cel.hasKey" "annotations" }})
{{- end }}

{{- define "asya-runtime.cel.pod" -}}
{{ include "asya-runtime.cel.anyHasKey" (printf "[%s]" (include "asya-runtime.cel.annotations" "object")) }} &&
!({{ include "asya-runtime.cel.isDisabled" "object" }}) &&
{{- /* A mirror pod only reflects a static pod of the kubelet, which runs regardless of admission. */}}
!('kubernetes.io/config.mirror' in object.metadata.annotations)
{{- end }}

{{- define "asya-runtime.cel.workload" -}}
{{- $templates := include "asya-runtime.cel.templates" "object" }}
{{- /* Includes the old object: an annotation removed from the workload must be removed from the pod template. */}}
{{- $all := printf "([object] + %s + (request.operation == 'UPDATE' ? [oldObject] : []))" $templates }}
{{- $jobs := printf "[%s] + (request.operation == 'UPDATE' ? [%s] : [])" (include "asya-runtime.cel.jobAnnotations" "object") (include "asya-runtime.cel.jobAnnotations" "oldObject") }}
{{- include "asya-runtime.cel.anyHasKey" (printf "(%s.map(each, %s) + %s)" $all (include "asya-runtime.cel.annotations" "each") $jobs) }} &&
{{- /* Updates by controllers do not wait for the injector. */}}
(request.operation != 'UPDATE' ||
{{ $templates }} != {{ include "asya-runtime.cel.templates" "oldObject" }} ||
{{ include "asya-runtime.cel.keysChange" . }}) &&
{{- /* With a changed template, the Deployment would consider the ReplicaSet outdated and create another, endlessly. */}}
(request.resource.resource != 'replicasets' || !has(object.metadata.ownerReferences) ||
!object.metadata.ownerReferences.exists(owner, has(owner.controller) && owner.controller)) &&
!has(object.metadata.deletionTimestamp) &&
{{- /* Propagated annotations follow the workload even in a template with injection disabled. */}}
!{{ $templates }}
.exists(each, {{ include "asya-runtime.cel.isDisabled" "each" }} &&
!('asya.sh/inherited' in each.metadata.annotations)) &&
{{- /* A workload with injection disabled is relevant only while a template in it has asya.sh/ annotations. */}}
(!({{ include "asya-runtime.cel.isDisabled" "object" }}) ||
({{ $templates }}.map(each, {{ include "asya-runtime.cel.annotations" "each" }}) + [{{ include "asya-runtime.cel.jobAnnotations" "object" }}])
.exists(annotations, {{ include "asya-runtime.cel.hasKey" "annotations" }}))
{{- end }}

{{/* The match condition of a webhook. Argument: first part of its name. */}}
{{- define "asya-runtime.matchConditions" -}}
{{- if eq . "pods" -}}
- name: needs-injection
  expression: >-
    {{- include "asya-runtime.cel.pod" . | nindent 4 }}
{{- else if eq . "workloads" -}}
- name: needs-propagation
  expression: >-
    {{- include "asya-runtime.cel.workload" . | nindent 4 }} &&
    {{ include "asya-runtime.cel.needsPropagation" . | indent 4 | trim }}
{{- else -}}
- name: needs-validation
  expression: >-
    {{- include "asya-runtime.cel.workload" . | nindent 4 }} &&
    !{{ include "asya-runtime.cel.needsPropagation" . | indent 4 | trim }}
{{- end }}
{{- end }}
