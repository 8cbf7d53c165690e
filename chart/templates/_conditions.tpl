{{/*
Match conditions in CEL: the API server sends an object to the injector only if all are true. An expression that fails
rejects the object, so test each optional field with has() first.
*/}}

{{/* List with the pod template of a workload, or an empty list. Argument: variable of the workload. */}}
{{- define "asya-runtime.cel.templates" -}}
(!has({{ . }}.spec) ? [] :
  has({{ . }}.spec.template) ? [{{ . }}.spec.template] :
  has({{ . }}.spec.jobTemplate) && has({{ . }}.spec.jobTemplate.spec) && has({{ . }}.spec.jobTemplate.spec.template) ?
    [{{ . }}.spec.jobTemplate.spec.template] : [])
{{- end }}

{{/* Whether an object or pod template has an asya.sh/ annotation. Argument: its variable. */}}
{{- define "asya-runtime.cel.hasAnnotation" -}}
has({{ . }}.metadata) && has({{ . }}.metadata.annotations) && {{ . }}.metadata.annotations.exists(key, key.startsWith('asya.sh/'))
{{- end }}

{{/* Whether asya.sh/inject is "false" on an object or pod template. Argument: its variable. */}}
{{- define "asya-runtime.cel.isDisabled" -}}
has({{ . }}.metadata) && has({{ . }}.metadata.annotations) && 'asya.sh/inject' in {{ . }}.metadata.annotations && {{ . }}.metadata.annotations['asya.sh/inject'] == 'false'
{{- end }}

{{/* Annotations of an object, or an empty map. Argument: variable of the object. */}}
{{- define "asya-runtime.cel.annotations" -}}
(has({{ . }}.metadata.annotations) ? {{ . }}.metadata.annotations : {})
{{- end }}

{{/* Whether an update adds, changes or removes an asya.sh/ annotation of the workload itself. */}}
{{- define "asya-runtime.cel.keysChange" -}}
[[{{ include "asya-runtime.cel.annotations" "object" }}, {{ include "asya-runtime.cel.annotations" "oldObject" }}],
[{{ include "asya-runtime.cel.annotations" "oldObject" }}, {{ include "asya-runtime.cel.annotations" "object" }}]]
.exists(pair, pair[0].exists(key, key.startsWith('asya.sh/') &&
!(key in pair[1] && pair[1][key] == pair[0][key])))
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
# A mirror pod only reflects a static pod of the kubelet, which runs regardless of admission.
- name: is-not-mirror-pod
  expression: >-
    !(has(object.metadata.annotations) && 'kubernetes.io/config.mirror' in object.metadata.annotations)
{{- end }}

{{- define "asya-runtime.workloadConditions" -}}
# Includes the old object: an annotation removed from the workload must be removed from the pod template.
- name: has-asya-annotation
  expression: >-
    ([object] + {{ include "asya-runtime.cel.templates" "object" | indent 4 | trim }} +
    (request.operation == 'UPDATE' ? [oldObject] : []))
    .exists(each, {{ include "asya-runtime.cel.hasAnnotation" "each" }})
# Updates by controllers do not wait for the injector.
- name: relevant-change
  expression: >-
    request.operation != 'UPDATE' ||
    {{ include "asya-runtime.cel.templates" "object" | indent 4 | trim }} !=
    {{ include "asya-runtime.cel.templates" "oldObject" | indent 4 | trim }} ||
    {{ include "asya-runtime.cel.keysChange" . | indent 4 | trim }}
# With a changed template, the Deployment would consider the ReplicaSet outdated and create another one, endlessly.
- name: is-not-controlled-replicaset
  expression: >-
    request.resource.resource != 'replicasets' || !has(object.metadata.ownerReferences) ||
    !object.metadata.ownerReferences.exists(owner, has(owner.controller) && owner.controller)
- name: is-not-deleting
  expression: >-
    !has(object.metadata.deletionTimestamp)
# Propagated annotations follow the workload even in a template with injection disabled.
- name: template-is-not-disabled
  expression: >-
    !{{ include "asya-runtime.cel.templates" "object" | indent 4 | trim }}
    .exists(each, {{ include "asya-runtime.cel.isDisabled" "each" }} &&
    !('asya.sh/inherited' in each.metadata.annotations))
# A workload with injection disabled is relevant only while its template has asya.sh/ annotations.
- name: is-not-disabled
  expression: >-
    !({{ include "asya-runtime.cel.isDisabled" "object" }}) ||
    {{ include "asya-runtime.cel.templates" "object" | indent 4 | trim }}
    .exists(each, {{ include "asya-runtime.cel.hasAnnotation" "each" }})
{{- end }}
