{{- define "rma.labels" -}}
app.kubernetes.io/name: rm-abstract
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "rma.selector" -}}
app.kubernetes.io/name: rm-abstract
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rma.store" -}}
{{- if .Values.store.host -}}
{{ .Values.store.host }}
{{- else if .Values.store.registry.enabled -}}
{{ .Release.Name }}-registry.{{ .Release.Namespace }}.svc:5000
{{- else -}}
{{ fail "store.host is needed where store.registry.enabled is false" }}
{{- end -}}
{{- end }}

{{- /* Not empty where the chart runs the registry. */}}
{{- define "rma.embedded" -}}
{{- if and .Values.store.registry.enabled (not .Values.store.host) -}}
{{- if and .Values.store.registry.auth.enabled (not .Values.store.registry.tls.enabled) -}}
{{ fail "store.registry.auth.enabled needs store.registry.tls.enabled: tokens go over TLS only" }}
{{- end -}}
true
{{- end -}}
{{- end }}

{{- /* true or false: whether the store is spoken to without TLS. */}}
{{- define "rma.plainHTTP" -}}
{{- if include "rma.embedded" . -}}
{{ not .Values.store.registry.tls.enabled }}
{{- else -}}
{{ .Values.store.plainHTTP }}
{{- end -}}
{{- end }}

{{- define "rma.audience" -}}
rm-abstract-registry
{{- end }}

{{- define "rma.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets -}}
imagePullSecrets: {{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Namespace of artifacts that all namespaces share; empty where nothing is shared. */}}
{{- define "rma.buildsNamespace" -}}
{{- if .Values.builds.shared.enabled -}}
{{- if eq .Values.builds.shared.namespace .Release.Namespace -}}
{{ fail "builds.shared.namespace must not be the release's own namespace: who builds there would read the operator's Secrets" }}
{{- end -}}
{{ .Values.builds.shared.namespace }}
{{- end -}}
{{- end }}

{{- define "rma.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "rma.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Values of an earlier chart lack what has come since, and helm upgrade --reuse-values takes them as they are. */}}
{{- define "rma.complete" -}}
{{- range $path := list "builds.shared" "cache.directory" "crds.install" "images.operator" "models" "operator.tracing" "policies.artifacts" "policies.runtime" "policies.images" "remote.tls" "remote.tls.certManager" "store.registry.tls" "store.registry.tls.certManager" "store.registry.auth" "store.imageVolumes" }}
{{- $found := $.Values }}
{{- range splitList "." $path }}
{{- $found = get ($found | default dict) . }}
{{- end }}
{{- if or (kindIs "invalid" $found) (eq (toString $found) "") }}
{{- fail (printf "the value %s is missing: these are the values of an earlier chart, and --reuse-values takes no new defaults; use helm upgrade --reset-then-reuse-values" $path) }}
{{- end }}
{{- end }}
{{- end }}
