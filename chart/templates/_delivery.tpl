{{/* What depends on runtime.delivery. */}}

{{/* "yes" if annotated pods mount an image; nothing if they mount a copy of the ConfigMap. */}}
{{- define "asya-runtime.mountsImage" -}}
{{- if eq .Values.runtime.delivery "image" }}yes{{ end }}
{{- end }}

{{/* The reference of the image that annotated pods mount. */}}
{{- define "asya-runtime.runtimeImage" -}}
{{- $image := ternary .Values.runtime.image .Values.injector.image (ne .Values.runtime.image.repository "") }}
{{- include "asya-runtime.reference" (list . $image) }}
{{- end }}

{{/* "yes" if the injector needs a permission outside its namespace: to write copies, or its caBundle. */}}
{{- define "asya-runtime.hasClusterRole" -}}
{{- if and .Values.rbac.create (or (not (include "asya-runtime.mountsImage" .)) (eq .Values.certificates.mode "self")) }}yes{{ end }}
{{- end }}

{{- define "asya-runtime.valid.delivery" -}}
{{- if include "asya-runtime.mountsImage" . }}
{{- $version := .Capabilities.KubeVersion.Version }}
{{- if not (semverCompare ">=1.36.0-0" $version) }}
{{- fail (printf "runtime.delivery: image requires Kubernetes 1.36 or newer, but this cluster has %s; upgrade the cluster, or use --set runtime.delivery=configMap" $version) }}
{{- end }}
{{- $path := toString (get .Values.runtime.defaults "mount-path") }}
{{- if hasSuffix ".py" $path }}
{{- fail (printf "runtime.defaults.mount-path is the file %s, but runtime.delivery: image mounts only directories; choose one, such as /opt/asya" $path) }}
{{- end }}
{{- with .Values.runtime.image }}
{{- if and (or .tag .digest) (not .repository) }}
{{- fail "runtime.image.repository is required if runtime.image.tag or runtime.image.digest is set; without all three, pods mount the image of the injector" }}
{{- end }}
{{- end }}
{{- else if and .Values.injector.enabled (not .Values.runtime.configMap.create) }}
{{- fail "runtime.configMap.create must be true if injector.enabled is true: the injector mounts this ConfigMap" }}
{{- end }}
{{- end }}
