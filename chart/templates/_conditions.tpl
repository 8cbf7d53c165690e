{{/*
Which objects the API server sends us, in CEL. An expression that fails blocks the object, so every field that may be
absent is asked for with has() first.
*/}}

{{/* The pod templates in a workload: none or one. Argument: the variable that holds the workload. */}}
{{- define "asya-runtime.cel.templates" -}}
(!has({{ . }}.spec) ? [] :
  has({{ . }}.spec.template) ? [{{ . }}.spec.template] :
  has({{ . }}.spec.jobTemplate) && has({{ . }}.spec.jobTemplate.spec) && has({{ . }}.spec.jobTemplate.spec.template) ?
    [{{ . }}.spec.jobTemplate.spec.template] : [])
{{- end }}

{{/* Whether an object or template carries a key of ours. Argument: the variable that holds it. */}}
{{- define "asya-runtime.cel.hasAnnotation" -}}
has({{ . }}.metadata) && has({{ . }}.metadata.annotations) && {{ . }}.metadata.annotations.exists(key, key.startsWith('asya.sh/'))
{{- end }}

{{/* Whether an object or template is switched off. Argument: the variable that holds it. */}}
{{- define "asya-runtime.cel.isDisabled" -}}
has({{ . }}.metadata) && has({{ . }}.metadata.annotations) && 'asya.sh/inject' in {{ . }}.metadata.annotations && {{ . }}.metadata.annotations['asya.sh/inject'] == 'false'
{{- end }}

{{/* The annotations of an object, empty if it has none. Argument: the variable that holds it. */}}
{{- define "asya-runtime.cel.annotations" -}}
(has({{ . }}.metadata.annotations) ? {{ . }}.metadata.annotations : {})
{{- end }}

{{/* Whether an update adds, changes or takes away a key of ours on the workload itself. */}}
{{- define "asya-runtime.cel.keysChange" -}}
[[{{ include "asya-runtime.cel.annotations" "object" }}, {{ include "asya-runtime.cel.annotations" "oldObject" }}],
[{{ include "asya-runtime.cel.annotations" "oldObject" }}, {{ include "asya-runtime.cel.annotations" "object" }}]]
.exists(pair, pair[0].exists(key, key.startsWith('asya.sh/') &&
!(key in pair[1] && pair[1][key] == pair[0][key])))
{{- end }}

{{/* The notes of inherited annotations in a workload's templates. Argument: the variable that holds the workload. */}}
{{- define "asya-runtime.cel.propagated" -}}
{{ include "asya-runtime.cel.templates" . }}
.map(each, has(each.metadata) && has(each.metadata.annotations) &&
  'asya.sh/inherited' in each.metadata.annotations ? each.metadata.annotations['asya.sh/inherited'] : '')
{{- end }}

{{/*
Whether the note in the template may have to be written: a workload that came without it would make pods that are none
of ours. Any other change of a template is only judged, and a wrong one shows again at its pods.
*/}}
{{- define "asya-runtime.cel.needsPropagation" -}}
request.operation != 'UPDATE' ||
{{ include "asya-runtime.cel.propagated" "object" }} !=
{{ include "asya-runtime.cel.propagated" "oldObject" }} ||
({{ include "asya-runtime.cel.hasAnnotation" "object" }}) && '' in {{ include "asya-runtime.cel.propagated" "object" }} ||
{{ include "asya-runtime.cel.keysChange" . }}
{{- end }}

{{- define "asya-runtime.podConditions" -}}
- name: has-asya-annotation
  expression: >-
    {{ include "asya-runtime.cel.hasAnnotation" "object" }}
- name: is-not-disabled
  expression: >-
    !({{ include "asya-runtime.cel.isDisabled" "object" }})
# The kubelet's mirrors of its static pods: refusing one changes nothing about the pod that runs.
- name: is-not-mirror-pod
  expression: >-
    !(has(object.metadata.annotations) && 'kubernetes.io/config.mirror' in object.metadata.annotations)
{{- end }}

{{- define "asya-runtime.workloadConditions" -}}
# The old object counts too: an annotation that was taken away must leave the template.
- name: has-asya-annotation
  expression: >-
    ([object] + {{ include "asya-runtime.cel.templates" "object" | indent 4 | trim }} +
    (request.operation == 'UPDATE' ? [oldObject] : []))
    .exists(each, {{ include "asya-runtime.cel.hasAnnotation" "each" }})
# So that no controller's own update waits for us.
- name: relevant-change
  expression: >-
    request.operation != 'UPDATE' ||
    {{ include "asya-runtime.cel.templates" "object" | indent 4 | trim }} !=
    {{ include "asya-runtime.cel.templates" "oldObject" | indent 4 | trim }} ||
    {{ include "asya-runtime.cel.keysChange" . | indent 4 | trim }}
# With a changed template its Deployment would take it for one of an older generation, and make another without end.
- name: is-not-controlled-replicaset
  expression: >-
    request.resource.resource != 'replicasets' || !has(object.metadata.ownerReferences) ||
    !object.metadata.ownerReferences.exists(owner, has(owner.controller) && owner.controller)
- name: is-not-deleting
  expression: >-
    !has(object.metadata.deletionTimestamp)
# A note of inherited annotations in a template that is switched off must still follow its workload.
- name: template-is-not-disabled
  expression: >-
    !{{ include "asya-runtime.cel.templates" "object" | indent 4 | trim }}
    .exists(each, {{ include "asya-runtime.cel.isDisabled" "each" }} &&
    !('asya.sh/inherited' in each.metadata.annotations))
# A workload that is switched off concerns us only if its template does not know of it yet.
- name: is-not-disabled
  expression: >-
    !({{ include "asya-runtime.cel.isDisabled" "object" }}) ||
    {{ include "asya-runtime.cel.templates" "object" | indent 4 | trim }}
    .exists(each, {{ include "asya-runtime.cel.hasAnnotation" "each" }})
{{- end }}
