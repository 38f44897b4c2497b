{{- /* Keys and certificates of the registry: made once, and kept by whoever upgrades, as templates of serving pods
remember the authority. They are made when first asked for, and the same for all templates of one rendering. */}}
{{- define "rma.certificates" -}}
{{- if not (hasKey .Values "certificatesMade") }}
{{- $name := printf "%s-registry" .Release.Name }}
{{- /* What is served is renewed once half of its life is over, and the authority, too: see registry-certificates.yaml.
The certificate of the key that signs tokens is the form in which the registry takes a public key: it ends never. */}}
{{- $years := dict "authority" 10 "served" 2 "signing" 100 }}
{{- $kept := dict }}
{{- range $part := list "ca" "tls" "signing" }}
{{- $_ := set $kept $part ((lookup "v1" "Secret" $.Release.Namespace (printf "%s-%s" $name $part)).data | default dict) }}
{{- end }}
{{- $made := dict }}
{{- if include "rma.ownCertificates" . }}
{{- $ca := dict }}
{{- if and (index $kept.ca "ca.crt") (index $kept.ca "ca.key") }}
{{- $ca = buildCustomCert (index $kept.ca "ca.crt") (index $kept.ca "ca.key") }}
{{- else }}
{{- $ca = genCAWithKey (printf "%s of %s" $name .Release.Namespace) (mul 365 $years.authority | int) (genPrivateKey "ecdsa") }}
{{- end }}
{{- $_ := set $made "ca" (dict "ca.crt" (b64enc $ca.Cert) "ca.key" (b64enc $ca.Key)) }}
{{- if and (eq (index $kept.tls "ca.crt" | default "") (b64enc $ca.Cert)) (index $kept.tls "tls.crt") (index $kept.tls "tls.key") }}
{{- $_ := set $made "tls" (pick $kept.tls "ca.crt" "tls.crt" "tls.key") }}
{{- else }}
{{- /* The address is that of kubectl port-forward. */}}
{{- $leaf := genSignedCertWithKey $name (list "127.0.0.1") (include "rma.registryHosts" . | fromJsonArray) (mul 365 $years.served | int) $ca (genPrivateKey "ecdsa") }}
{{- $_ := set $made "tls" (dict "ca.crt" (b64enc $ca.Cert) "tls.crt" (b64enc $leaf.Cert) "tls.key" (b64enc $leaf.Key)) }}
{{- end }}
{{- end }}
{{- if and .Values.store.registry.auth.enabled (not .Values.store.registry.auth.signingSecretName) }}
{{- if and (index $kept.signing "tls.crt") (index $kept.signing "tls.key") }}
{{- $_ := set $made "signing" (pick $kept.signing "tls.crt" "tls.key") }}
{{- else }}
{{- /* Of its own authority: the registry believes tokens of nobody else, whatever the other one has signed. */}}
{{- $signing := genSelfSignedCertWithKey (printf "%s-auth" $name) nil nil (mul 365 $years.signing | int) (genPrivateKey "ecdsa") }}
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
