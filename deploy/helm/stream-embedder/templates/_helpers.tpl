{{- define "stream-embedder.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride | default (ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name)) -}}
{{- $full | trunc 41 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels that every object and pod has. app.kubernetes.io/name of a pod is KubeRay's own. */}}
{{- define "stream-embedder.selector" -}}
app.kubernetes.io/part-of: stream-embedder
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "stream-embedder.labels" -}}
{{ include "stream-embedder.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "stream-embedder.image" -}}
{{- $tag := .Values.image.tag | default .Chart.AppVersion -}}
{{- with .Values.image.digest }}{{ printf "%s:%s@%s" $.Values.image.repository $tag . }}{{ else }}{{ printf "%s:%s" .Values.image.repository $tag }}{{ end -}}
{{- end -}}

{{/* The settings, with what the chart decides. A node gives encoders its GPUs alone or its CPUs alone: a reader that took a CPU
     of a GPU node would keep it for ever. */}}
{{- define "stream-embedder.pipeline" -}}
{{- $ours := dict "readers" (dict "count" 1 "cpus" 1) "delivery" (dict "drain_timeout_s" 20.0) -}}
{{- $pool := dict "gpus_per_replica" .Values.gpu.perReplica "cpus_per_replica" 0 -}}
{{- if .Values.gpu.enabled -}}
{{/* Serve stops an encoder so long before its node's end, or at once where the node has less: readers that drain at the same
     time need it until then. */}}
{{- $_ := set $ours "pool" (dict "call_timeout_s" 30.0) -}}
{{- else -}}
{{- $pool = dict "gpus_per_replica" 0 "cpus_per_replica" .Values.workers.cpusPerReplica -}}
{{- end -}}
{{- $forced := dict "pool" $pool -}}
{{- mergeOverwrite $ours (deepCopy .Values.pipeline) $forced | toYaml -}}
{{- end -}}

{{/* The settings travel in the pod that runs by them, as an annotation that it sees as a file. So other settings are another
     cluster, never half of one; and a cluster that is being replaced, or comes back by a rollback, needs nothing that Helm
     may have taken away. */}}
{{- define "stream-embedder.settings" -}}
stream-embedder/pipeline.yaml: {{ include "stream-embedder.pipeline" . | toJson }}
{{- end -}}
{{- define "stream-embedder.settingsVolume" -}}
name: settings
projected:
  sources:
    - downwardAPI:
        items:
          - path: pipeline.yaml
            fieldRef: { fieldPath: "metadata.annotations['stream-embedder/pipeline.yaml']" }
{{- end -}}

{{/* Seconds. Serve gives a reader its drain and 15 s more before it kills it (pipelines/stream.py); the node waits 10 s longer
     than that, the head outlives the nodes by 5, because its controller is who orders the drain; and Ray has 30 s to end. */}}
{{- define "stream-embedder.readerDrain" -}}
{{- $pipeline := include "stream-embedder.pipeline" . | fromYaml -}}
{{- add (ceil $pipeline.delivery.drain_timeout_s) 15 10 -}}
{{- end -}}
{{- define "stream-embedder.longestDrain" -}}
{{- $readers := include "stream-embedder.readerDrain" . | int -}}
{{- max $readers (.Values.gpu.drainSeconds | int) -}}
{{- end -}}

{{/* Whether queries are answered over HTTP: true, or nothing. */}}
{{- define "stream-embedder.queries" -}}
{{- $pipeline := include "stream-embedder.pipeline" . | fromYaml -}}
{{- if and (eq .Values.kind "stream") (dig "queries" "enabled" false $pipeline) }}true{{ end -}}
{{- end -}}

{{/* Pods of the group `readers`: one for each reader, and one for who answers queries. Any of them may hold either. */}}
{{- define "stream-embedder.readerPods" -}}
{{- $pipeline := include "stream-embedder.pipeline" . | fromYaml -}}
{{- add (int $pipeline.readers.count) (ternary 1 0 (eq "true" (include "stream-embedder.queries" .))) -}}
{{- end -}}

{{- define "stream-embedder.bytes" -}}
{{- $units := dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 -}}
{{- mul (regexFind "^[0-9]+" .) (get $units (regexFind "[KMG]i$" .)) -}}
{{- end -}}

{{/* Whole CPUs that Ray may hand out on a pod of `workers`. */}}
{{- define "stream-embedder.workerCpus" -}}
{{- $resources := .Values.workers.resources -}}
{{- $cpu := dig "limits" "cpu" "" $resources | default (dig "requests" "cpu" "" $resources) | toString -}}
{{- if not (regexMatch "^[1-9][0-9]*$" $cpu) -}}
{{- fail (printf "workers.resources: Ray hands out whole CPUs, so the limit or the request of cpu has to be a whole number, not %q" $cpu) -}}
{{- end -}}
{{- $cpu -}}
{{- end -}}

{{/* What cannot work, said before anything is made. */}}
{{- define "stream-embedder.check" -}}
{{- $pipeline := include "stream-embedder.pipeline" . | fromYaml -}}
{{- if not (regexMatch "^[a-z]" (include "stream-embedder.fullname" .)) -}}
{{- fail (printf "KubeRay wants a name that begins with a letter, which %q does not: set fullnameOverride" (include "stream-embedder.fullname" .)) -}}
{{- end -}}
{{- $least := dig "pool" "min" 1 $pipeline -}}
{{- $most := dig "pool" "max" 1 $pipeline -}}
{{- if gt (float64 $least) (float64 $most) -}}
{{- fail (printf "pipeline.pool.min (%v) is larger than pipeline.pool.max (%v)" $least $most) -}}
{{- end -}}
{{- if .Values.gpu.enabled -}}
  {{- if gt (float64 .Values.gpu.perReplica) (float64 .Values.gpu.perPod) -}}
  {{- fail (printf "gpu.perReplica (%v) is more than a pod has (gpu.perPod: %v)" .Values.gpu.perReplica .Values.gpu.perPod) -}}
  {{- end -}}
  {{- if gt (int .Values.gpu.minPods) (include "stream-embedder.gpuPods" . | int) -}}
  {{- fail "gpu.minPods is larger than gpu.maxPods" -}}
  {{- end -}}
{{- else -}}
  {{- if eq (float64 .Values.workers.cpusPerReplica) 0.0 -}}
  {{- fail "workers.cpusPerReplica: without GPUs an encoder needs CPUs" -}}
  {{- end -}}
  {{- if gt (int .Values.workers.minPods) (int .Values.workers.maxPods) -}}
  {{- fail "workers.minPods is larger than workers.maxPods" -}}
  {{- end -}}
  {{- $readers := ternary (mul (int $pipeline.readers.count) (int $pipeline.readers.cpus)) 0 (eq .Values.kind "stream") -}}
  {{- $queries := ternary 1 0 (eq "true" (include "stream-embedder.queries" .)) -}}
  {{- $needed := add $readers $queries (ceil (mulf $most .Values.workers.cpusPerReplica)) -}}
  {{- $there := mul (int .Values.workers.maxPods) (include "stream-embedder.workerCpus" . | int) -}}
  {{- if gt (int $needed) (int $there) -}}
  {{- fail (printf "readers%s and pipeline.pool.max encoders take %d CPUs, and workers.maxPods pods have %d: raise workers.maxPods or workers.resources, or lower pool.max" (ternary ", queries" "" (eq $queries 1)) (int $needed) (int $there)) -}}
  {{- end -}}
{{- end -}}
{{- if and .Values.monitoring.rules.enabled (eq .Values.kind "batch") -}}
{{- fail "monitoring.rules are of a stream; a batch has none" -}}
{{- end -}}
{{- if and .Values.gcsFaultTolerance.enabled (not .Values.gcsFaultTolerance.redisAddress) -}}
{{- fail "gcsFaultTolerance.redisAddress is missing, such as redis://redis:6379" -}}
{{- end -}}
{{- if and .Values.tls.enabled (not .Values.tls.caSecret) -}}
{{- fail "tls.caSecret is missing: a Secret with ca.crt and ca.key" -}}
{{- end -}}
{{- end -}}

{{/* The most GPU pods: what pool.max replicas take, unless gpu.maxPods says less or more. */}}
{{- define "stream-embedder.gpuPods" -}}
{{- if .Values.gpu.maxPods -}}
{{- .Values.gpu.maxPods -}}
{{- else -}}
{{- $pipeline := include "stream-embedder.pipeline" . | fromYaml -}}
{{- $perPod := floor (divf .Values.gpu.perPod .Values.gpu.perReplica) -}}
{{- ceil (divf (dig "pool" "max" 1 $pipeline) $perPod) -}}
{{- end -}}
{{- end -}}
