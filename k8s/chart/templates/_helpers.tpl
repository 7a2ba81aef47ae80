{{- define "arcface.labels" -}}
app.kubernetes.io/name: arcface
app.kubernetes.io/part-of: arcface
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "arcface.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end -}}
{{- end -}}

{{- /* Queues and priority classes have no namespace: refuse one that another release made. (list $ version kind name remedy) */}}
{{- define "arcface.requireOwn" -}}
{{- $root := index . 0 }}
{{- $kind := index . 2 }}
{{- if $root.Capabilities.APIVersions.Has (printf "%s/%s" (index . 1) $kind) }}
{{- with lookup (index . 1) $kind "" (index . 3) }}
{{- $told := .metadata.annotations | default dict }}
{{- $owner := printf "%s/%s" (index $told "meta.helm.sh/release-namespace") (index $told "meta.helm.sh/release-name") }}
{{- if ne $owner (printf "%s/%s" $root.Release.Namespace $root.Release.Name) }}
{{- $who := ternary (printf "release %s" $owner) "somebody else, without Helm" (hasKey $told "meta.helm.sh/release-name") }}
{{- fail (printf "%s %s is there already, made by %s: %s" $kind .metadata.name $who (index $ 4)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Of a service account or a pod: what a private registry asks for. */}}
{{- define "arcface.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Pod and container of the Pod Security level "restricted". */}}
{{- define "arcface.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "arcface.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- /* Where helm test writes a small object and deletes it. */}}
{{- define "arcface.testUrl" -}}
{{- if .Values.s3.testUrl -}}
{{ .Values.s3.testUrl }}
{{- else if .Values.seaweedfs.enabled -}}
s3://{{ .Values.seaweedfs.bucket }}/.helm-test
{{- else -}}
s3://runs/.helm-test
{{- end -}}
{{- end -}}

{{- /* Of the S3 Secret, its ca.crt alone and only where it has one. */}}
{{- define "arcface.storeAuthority" -}}
- name: store-ca
  secret:
    secretName: {{ .Values.s3.secret | quote }}
    optional: true
    items: [{key: ca.crt, path: ca.crt}]
{{- end }}
