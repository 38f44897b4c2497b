{{- /* An authority, and what it has signed for "hosts", as JSON: made once, and kept by whoever upgrades, as templates of
serving pods remember the authority. What is served is renewed once half of its life is over, and the authority, too. */}}
{{- define "rma.servedCertificate" -}}
{{- $kept := dict }}
{{- range $part := list "ca" "tls" }}
{{- $_ := set $kept $part ((lookup "v1" "Secret" $.root.Release.Namespace (printf "%s-%s" $.name $part)).data | default dict) }}
{{- end }}
{{- $ca := dict }}
{{- if and (index $kept.ca "ca.crt") (index $kept.ca "ca.key") }}
{{- $ca = buildCustomCert (index $kept.ca "ca.crt") (index $kept.ca "ca.key") }}
{{- else }}
{{- $ca = genCAWithKey (printf "%s of %s" .name .root.Release.Namespace) 3650 (genPrivateKey "ecdsa") }}
{{- end }}
{{- $tls := dict }}
{{- if and (eq (index $kept.tls "ca.crt" | default "") (b64enc $ca.Cert)) (index $kept.tls "tls.crt") (index $kept.tls "tls.key") }}
{{- $tls = pick $kept.tls "ca.crt" "tls.crt" "tls.key" }}
{{- else }}
{{- $leaf := genSignedCertWithKey .name .addresses .hosts 730 $ca (genPrivateKey "ecdsa") }}
{{- $tls = dict "ca.crt" (b64enc $ca.Cert) "tls.crt" (b64enc $leaf.Cert) "tls.key" (b64enc $leaf.Key) }}
{{- end }}
{{- dict "ca" (dict "ca.crt" (b64enc $ca.Cert) "ca.key" (b64enc $ca.Key)) "tls" $tls | toJson }}
{{- end }}

{{- /* Keys and certificates of the registry. They are made when first asked for, and the same for all templates of one
rendering. */}}
{{- define "rma.certificates" -}}
{{- if not (hasKey .Values "certificatesMade") }}
{{- $name := printf "%s-registry" .Release.Name }}
{{- $made := dict }}
{{- if include "rma.ownCertificates" . }}
{{- /* The address is that of kubectl port-forward. */}}
{{- $hosts := include "rma.registryHosts" . | fromJsonArray }}
{{- $made = include "rma.servedCertificate" (dict "root" . "name" $name "addresses" (list "127.0.0.1") "hosts" $hosts) | fromJson }}
{{- end }}
{{- if and .Values.store.registry.auth.enabled (not .Values.store.registry.auth.signingSecretName) }}
{{- $kept := (lookup "v1" "Secret" .Release.Namespace (printf "%s-signing" $name)).data | default dict }}
{{- if and (index $kept "tls.crt") (index $kept "tls.key") }}
{{- $_ := set $made "signing" (pick $kept "tls.crt" "tls.key") }}
{{- else }}
{{- /* Of its own authority: the registry believes tokens of nobody else, whatever the other one has signed. The
certificate is the form in which the registry takes a public key: it ends never. */}}
{{- $signing := genSelfSignedCertWithKey (printf "%s-auth" $name) nil nil 36500 (genPrivateKey "ecdsa") }}
{{- $_ := set $made "signing" (dict "tls.crt" (b64enc $signing.Cert) "tls.key" (b64enc $signing.Key)) }}
{{- end }}
{{- end }}
{{- $_ := set .Values "certificatesMade" $made }}
{{- end }}
{{- end }}

{{- /* Not empty where the chart makes the certificates itself. */}}
{{- define "rma.ownCertificates" -}}
{{- $tls := .Values.store.registry.tls }}
{{- if and (include "rma.embedded" .) $tls.enabled (not $tls.secretName) (not $tls.certManager.issuerRef.name) }}true{{ end }}
{{- end }}

{{- /* Names of the registry and of its token service in the cluster, as JSON. */}}
{{- define "rma.registryHosts" -}}
{{- $hosts := list }}
{{- range $service := list (printf "%s-registry" .Release.Name) (printf "%s-registry-auth" .Release.Name) }}
{{- $hosts = concat $hosts (list (printf "%s.%s.svc" $service $.Release.Namespace) (printf "%s.%s.svc.cluster.local" $service $.Release.Namespace)) }}
{{- end }}
{{- $hosts | toJson }}
{{- end }}

{{- /* Pods read certificates when they start: others start when these change. */}}
{{- define "rma.certificatesChecksum" -}}
{{- include "rma.certificates" . }}
{{- .Values.certificatesMade | toJson | sha256sum }}
{{- end }}

{{- define "rma.tlsSecret" -}}
{{ .Values.store.registry.tls.secretName | default (printf "%s-registry-tls" .Release.Name) }}
{{- end }}

{{- define "rma.signingSecret" -}}
{{ .Values.store.registry.auth.signingSecretName | default (printf "%s-registry-signing" .Release.Name) }}
{{- end }}

{{- /* Keys and certificates of proxies before endpoints outside the cluster, in the same way. */}}
{{- define "rma.remoteCertificates" -}}
{{- if not (hasKey .Values "remoteCertificatesMade") }}
{{- $made := dict }}
{{- if include "rma.ownRemoteCertificates" . }}
{{- $hosts := include "rma.remoteHosts" . | fromJsonArray }}
{{- $made = include "rma.servedCertificate" (dict "root" . "name" (printf "%s-remote" .Release.Name) "addresses" list "hosts" $hosts) | fromJson }}
{{- end }}
{{- $_ := set .Values "remoteCertificatesMade" $made }}
{{- end }}
{{- end }}

{{- define "rma.ownRemoteCertificates" -}}
{{- $tls := .Values.remote.tls }}
{{- if and $tls.enabled (not $tls.secretName) (not $tls.certManager.issuerRef.name) }}true{{ end }}
{{- end }}

{{- /* A proxy has the name of its AcceleratorResource, which comes later than the chart. */}}
{{- define "rma.remoteHosts" -}}
{{- list (printf "*.%s.svc" .Release.Namespace) (printf "*.%s.svc.cluster.local" .Release.Namespace) | toJson }}
{{- end }}

{{- define "rma.remoteTlsSecret" -}}
{{ .Values.remote.tls.secretName | default (printf "%s-remote-tls" .Release.Name) }}
{{- end }}

{{- /* Renews "authority" and "served" long before they end, and tells the ConfigMap "description" if there is one. */}}
{{- define "rma.renewal" -}}
{{- $root := .root }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  labels: {{- include "rma.labels" $root | nindent 4 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ .name }}
  labels: {{- include "rma.labels" $root | nindent 4 }}
rules:
  - apiGroups: [""]
    resources: [secrets]
    resourceNames: [{{ .authority }}, {{ .served }}]
    verbs: [get, patch]
  {{- with .description }}
  - apiGroups: [""]
    resources: [configmaps]
    resourceNames: [{{ . }}]
    verbs: [patch]
  {{- end }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ .name }}
  labels: {{- include "rma.labels" $root | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ .name }}}
subjects:
  - {kind: ServiceAccount, name: {{ .name }}, namespace: {{ $root.Release.Namespace }}}
---
apiVersion: batch/v1
kind: CronJob
metadata:
  name: {{ .name }}
  labels: {{- include "rma.labels" $root | nindent 4 }}
spec:
  schedule: "17 3 * * 0"
  concurrencyPolicy: Forbid
  successfulJobsHistoryLimit: 1
  failedJobsHistoryLimit: 1
  jobTemplate:
    spec:
      backoffLimit: 3
      activeDeadlineSeconds: 600
      template:
        metadata:
          labels:
            {{- include "rma.labels" $root | nindent 12 }}
            app.kubernetes.io/component: {{ trimPrefix (printf "%s-" $root.Release.Name) .name }}
        spec:
          serviceAccountName: {{ .name }}
          {{- include "rma.imagePullSecrets" $root | nindent 10 }}
          enableServiceLinks: false
          restartPolicy: Never
          securityContext: {{- include "rma.podSecurity" $root | nindent 12 }}
          containers:
            - name: certificates
              image: {{ $root.Values.images.operator | quote }}
              imagePullPolicy: {{ $root.Values.images.pullPolicy }}
              command:
                - python3
                - -m
                - rm_operator.registry_auth.certificates
                - --namespace={{ $root.Release.Namespace }}
                - --authority={{ .authority }}
                - --served={{ .served }}
                {{- with .description }}
                - --description={{ . }}
                {{- end }}
              env:
                - {name: HOME, value: /tmp}
              resources:
                requests: {cpu: 10m, memory: 64Mi}
                limits: {memory: 256Mi}
              securityContext: {{- include "rma.containerSecurity" $root | nindent 16 }}
              volumeMounts:
                - {name: tmp, mountPath: /tmp}
          volumes:
            - {name: tmp, emptyDir: {}}
{{- end }}

{{- /* What cert-manager makes and renews in the place of that. */}}
{{- define "rma.certManagerCertificate" -}}
apiVersion: cert-manager.io/v1
kind: Certificate
metadata:
  name: {{ .secret }}
  labels: {{- include "rma.labels" .root | nindent 4 }}
spec:
  secretName: {{ .secret }}
  issuerRef: {{- toYaml .issuer | nindent 4 }}
  commonName: {{ .name }}
  dnsNames: {{- toYaml .hosts | nindent 4 }}
  {{- with .addresses }}
  ipAddresses: {{- toYaml . | nindent 4 }}
  {{- end }}
  privateKey: {algorithm: ECDSA, size: 256}
  usages: [digital signature, server auth]
{{- end }}
