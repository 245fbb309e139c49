{{- define "mongomirror.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* What everything is called, or begins with. 52 characters leave room for "-leader" and the like,
and for what Kubernetes adds to the names of pods. A release may have dots in its name, a Service not. */}}
{{- define "mongomirror.fullname" -}}
{{- $name := include "mongomirror.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | replace "." "-" | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | replace "." "-" | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "mongomirror.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (include "mongomirror.fullname" .) -}}
{{- end -}}

{{- define "mongomirror.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether several operators agree on one of them. */}}
{{- define "mongomirror.election" -}}
{{- if gt (int .Values.replicas) 1 -}}true{{- end -}}
{{- end -}}

{{/* These must never change: a Deployment's selector cannot. */}}
{{- define "mongomirror.selectorLabels" -}}
app.kubernetes.io/name: {{ include "mongomirror.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "mongomirror.ownLabels" -}}
{{ include "mongomirror.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Whether there is a pod for `helm test`, which needs the Service. */}}
{{- define "mongomirror.test" -}}
{{- if and .Values.test.enabled .Values.service.enabled -}}true{{- end -}}
{{- end -}}

{{/* The pod of `helm test`: nothing that selects the operator's pods may find it. */}}
{{- define "mongomirror.testLabels" -}}
app.kubernetes.io/name: {{ printf "%s-test" (include "mongomirror.name" . | trunc 58 | trimSuffix "-") }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What all pods of the chart have in common. */}}
{{- define "mongomirror.pod" -}}
{{- range $field := list "imagePullSecrets" "priorityClassName" "runtimeClassName" "nodeSelector" "tolerations" }}
{{- with get $.Values $field }}
{{ dict $field . | toYaml }}
{{- end }}
{{- end }}
{{- with .Values.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* And all containers. */}}
{{- define "mongomirror.container" -}}
image: {{ include "mongomirror.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
command: [mongomirror]
{{- with .Values.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The metadata of an object but its name and namespace. Called with a dict: root, labels and
annotations beside the common ones, and own labels instead of the operator's. The chart's own win. */}}
{{- define "mongomirror.metadata" -}}
{{- $labels := mergeOverwrite (deepCopy (.root.Values.commonLabels | default dict)) (.labels | default dict) -}}
labels:
  {{- toYaml (mergeOverwrite $labels (include "mongomirror.ownLabels" .root | fromYaml) (.own | default dict)) | nindent 2 }}
{{- with mergeOverwrite (deepCopy (.root.Values.commonAnnotations | default dict)) (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* How many pods a number or a percentage is, rounded up as Kubernetes does it for a budget. Called
with a dict: what it is, and of how many. */}}
{{- define "mongomirror.pods" -}}
{{- if kindIs "string" .is -}}
{{- div (add (mul (trimSuffix "%" .is | atoi) .of) 99) 100 -}}
{{- else -}}
{{- int .is -}}
{{- end -}}
{{- end -}}

{{/* What the schema cannot say. */}}
{{- define "mongomirror.check" -}}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) -}}
{{- fail "serviceAccount.create is false: name the service account to use in serviceAccount.name" -}}
{{- end -}}
{{- with .Values.podDisruptionBudget -}}
{{- if and (not (kindIs "invalid" .minAvailable)) (not (kindIs "invalid" .maxUnavailable)) -}}
{{- fail "podDisruptionBudget has both minAvailable and maxUnavailable: give one of them" -}}
{{- end -}}
{{- $replicas := int $.Values.replicas -}}
{{- if and .enabled (gt $replicas 0) -}}
{{- if not (kindIs "invalid" .minAvailable) -}}
{{- if ge (include "mongomirror.pods" (dict "of" $replicas "is" .minAvailable) | int) $replicas -}}
{{- fail (printf "podDisruptionBudget.minAvailable is %s and replicas is %d, so that no node could be drained: make it less, or replicas more" (toString .minAvailable) $replicas) -}}
{{- end -}}
{{- else if not (kindIs "invalid" .maxUnavailable) -}}
{{- if lt (include "mongomirror.pods" (dict "of" $replicas "is" .maxUnavailable) | int) 1 -}}
{{- fail (printf "podDisruptionBudget.maxUnavailable is %s, so that no node could be drained: make it more" (toString .maxUnavailable)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range .Values.extraEnv -}}
{{- if or (hasPrefix "MONGOMIRROR_" .name) (eq .name "RUST_LOG") -}}
{{- fail (printf "extraEnv sets %s, which is the chart's: use watchNamespaces, replicas, log.filter" .name) -}}
{{- end -}}
{{- end -}}
{{- range $label, $_ := include "mongomirror.selectorLabels" . | fromYaml -}}
{{- if or (hasKey ($.Values.commonLabels | default dict) $label) (hasKey ($.Values.podLabels | default dict) $label) -}}
{{- fail (printf "commonLabels and podLabels may not set %s, by which the operator's pods are found" $label) -}}
{{- end -}}
{{- end -}}
{{- end -}}
