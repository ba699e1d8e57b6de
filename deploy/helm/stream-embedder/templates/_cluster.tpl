{{/* The spec of the Ray cluster: of a RayService for a stream, of a RayJob for a batch. */}}
{{- define "stream-embedder.cluster" -}}
{{- $pipeline := include "stream-embedder.pipeline" . | fromYaml }}
{{- $readerDrain := include "stream-embedder.readerDrain" . | int }}
{{- $readerPods := include "stream-embedder.readerPods" . }}
{{- $longest := include "stream-embedder.longestDrain" . | int -}}
rayVersion: {{ index .Chart.Annotations "stream-embedder/ray" | quote }}
{{- if .Values.auth.token.enabled }}
authOptions:
  mode: token
  {{- with .Values.auth.token.existingSecret }}
  secretName: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.gcsFaultTolerance }}
{{- if .enabled }}
gcsFaultToleranceOptions:
  redisAddress: {{ .redisAddress | quote }}
  {{- if .usernameSecret.name }}
  redisUsername: { valueFrom: { secretKeyRef: { name: {{ .usernameSecret.name }}, key: {{ .usernameSecret.key }} } } }
  {{- end }}
  {{- if .passwordSecret.name }}
  redisPassword: { valueFrom: { secretKeyRef: { name: {{ .passwordSecret.name }}, key: {{ .passwordSecret.key }} } } }
  {{- end }}
{{- end }}
{{- end }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  upscalingMode: Default
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  securityContext: {{ toYaml .Values.securityContext | nindent 4 }}
  resources: {{ toYaml .Values.autoscaler.resources | nindent 4 }}
  env:
    - { name: HOME, value: /tmp }
    {{- with include "stream-embedder.tlsEnv" . }}{{ . | nindent 4 }}{{ end }}
  volumeMounts:
    - { name: autoscaler-tmp, mountPath: /tmp }
    {{- if .Values.tls.enabled }}
    - { name: tls, mountPath: /etc/ray/tls, readOnly: true }
    {{- end }}
headGroupSpec:
  rayStartParams:
    num-cpus: "0"
    object-store-memory: {{ include "stream-embedder.bytes" .Values.head.objectStoreMemory | quote }}
  template:
    {{- include "stream-embedder.pod" (dict "root" . "part" "head" "group" .Values.head "drain" (add $longest 5) "bounds" "1") | nindent 4 }}
workerGroupSpecs:
  {{- if .Values.gpu.enabled }}
  {{- if eq .Values.kind "stream" }}
  - groupName: readers
    minReplicas: {{ $readerPods }}
    maxReplicas: {{ $readerPods }}
    replicas: {{ $readerPods }}
    rayStartParams:
      num-cpus: {{ $pipeline.readers.cpus | quote }} # one reader a pod, or who answers queries
      object-store-memory: {{ include "stream-embedder.bytes" .Values.readers.objectStoreMemory | quote }}
    template:
      {{- include "stream-embedder.pod" (dict "root" . "part" "readers" "group" .Values.readers "drain" $readerDrain "bounds" $readerPods) | nindent 6 }}
  {{- end }}
  - groupName: gpu
    minReplicas: {{ .Values.gpu.minPods }}
    maxReplicas: {{ include "stream-embedder.gpuPods" . }}
    replicas: {{ .Values.gpu.minPods }}
    idleTimeoutSeconds: {{ .Values.gpu.idleTimeoutSeconds }}
    rayStartParams:
      num-cpus: "0" # for encoders alone, which ask for none
      num-gpus: {{ .Values.gpu.perPod | quote }}
      object-store-memory: {{ include "stream-embedder.bytes" .Values.gpu.objectStoreMemory | quote }}
    template:
      {{- include "stream-embedder.pod" (dict "root" . "part" "encoders" "group" .Values.gpu "drain" (int .Values.gpu.drainSeconds) "gpus" .Values.gpu.perPod "bounds" (printf "%v-%s" .Values.gpu.minPods (include "stream-embedder.gpuPods" .))) | nindent 6 }}
  {{- else }}
  - groupName: workers
    minReplicas: {{ .Values.workers.minPods }}
    maxReplicas: {{ .Values.workers.maxPods }}
    replicas: {{ .Values.workers.minPods }}
    idleTimeoutSeconds: {{ .Values.workers.idleTimeoutSeconds }}
    rayStartParams:
      num-cpus: {{ include "stream-embedder.workerCpus" . | quote }}
      object-store-memory: {{ include "stream-embedder.bytes" .Values.workers.objectStoreMemory | quote }}
    template:
      {{- include "stream-embedder.pod" (dict "root" . "part" "workers" "group" .Values.workers "drain" $readerDrain "bounds" (printf "%v-%v" .Values.workers.minPods .Values.workers.maxPods)) | nindent 6 }}
  {{- end }}
{{- end -}}
