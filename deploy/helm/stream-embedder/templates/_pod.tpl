{{/* A Ray pod. Comes in: root, part (head, readers, encoders, workers), group (its section of the values), drain (seconds), gpus,
     bounds (least and most pods, as text).
     KubeRay adds the command, Ray's addresses, its token, and on workers a container that waits for the head. */}}
{{- define "stream-embedder.pod" -}}
{{- $root := .root -}}
{{- $values := .root.Values -}}
{{- $group := .group -}}
metadata:
  labels:
    {{- include "stream-embedder.selector" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .part }}
    {{- with $group.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
  annotations:
    {{- include "stream-embedder.settings" $root | nindent 4 }}
    # KubeRay passes over a change of bounds and tolerations alone, as if none had been made; so it is one of these too.
    stream-embedder/bounds: {{ .bounds | quote }}
    stream-embedder/tolerations: {{ $group.tolerations | toJson | sha256sum | trunc 10 | quote }}
    {{- with $group.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "stream-embedder.fullname" $root }}{{ if eq .part "head" }}-head{{ end }}
  automountServiceAccountToken: {{ eq .part "head" }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ add .drain 30 }}
  securityContext: {{ toYaml $values.podSecurityContext | nindent 4 }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $group.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $group.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $group.nodeSelector }}
  nodeSelector: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $group.tolerations }}
  tolerations: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $group.affinity }}
  affinity: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $group.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- $own := dict "matchLabels" (merge (dict "app.kubernetes.io/component" $.part) (include "stream-embedder.selector" $root | fromYaml)) }}
    {{- range . }}
    - {{ ternary . (set (deepCopy .) "labelSelector" $own) (hasKey . "labelSelector") | toYaml | nindent 6 | trim }}
    {{- end }}
  {{- end }}
  {{- if $values.tls.enabled }}
  initContainers:
    - name: certificate
      image: {{ include "stream-embedder.image" $root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      command: [bash, /etc/certificate/certificate.sh, /etc/ca, /etc/ray/tls, {{ $values.tls.days | quote }}, {{ .part }}]
      env:
        - name: POD_IP
          valueFrom: { fieldRef: { fieldPath: status.podIP } }
      securityContext: {{ toYaml $values.securityContext | nindent 8 }}
      resources:
        requests: { cpu: 50m, memory: 64Mi }
        limits: { memory: 64Mi }
      volumeMounts:
        - { name: ca, mountPath: /etc/ca, readOnly: true }
        - { name: tls, mountPath: /etc/ray/tls }
        - { name: certificate, mountPath: /etc/certificate, readOnly: true }
  {{- end }}
  containers:
    - name: {{ ternary "ray-head" "ray-worker" (eq .part "head") }}
      image: {{ include "stream-embedder.image" $root }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      securityContext: {{ toYaml $values.securityContext | nindent 8 }}
      ports:
        - { name: metrics, containerPort: 8080 }
        {{- if eq .part "head" }}
        - { name: gcs-server, containerPort: 6379 }
        - { name: dashboard, containerPort: 8265 }
        - { name: client, containerPort: 10001 }
        - { name: serve, containerPort: 8000 }
        {{- end }}
      env:
        # How long a node that gets SIGTERM stays, so that its readers commit and leave the group, and its calls end.
        - { name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: {{ .drain | quote }} }
        - { name: RAY_USAGE_STATS_ENABLED, value: "0" }
        - { name: RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO, value: "0" }
        {{- if $values.logToStderr }}
        - { name: RAY_LOG_TO_STDERR, value: "1" }
        {{- end }}
        - { name: HOME, value: /tmp }
        - { name: XDG_CACHE_HOME, value: /cache }
        - { name: HF_HOME, value: /cache/huggingface }
        {{- with include "stream-embedder.tlsEnv" $root }}{{ . | nindent 8 }}{{ end }}
        {{- range $values.secretEnv }}
        {{- if or (ne $.part "encoders") .encoders }}
        - name: {{ .name }}
          valueFrom: { secretKeyRef: { name: {{ .secret }}, key: {{ .key }} } }
        {{- end }}
        {{- end }}
        {{- with $values.extraEnv }}{{ toYaml . | nindent 8 }}{{ end }}
      # Whether Ray lives on this node. No startup probe: KubeRay's job that cleans Redis up runs this container without Ray.
      livenessProbe:
        httpGet: { path: /api/healthz, port: 52365 }
        initialDelaySeconds: 120
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        {{- if or (eq .part "head") (eq $values.kind "batch") }}
        # Not whether the pipeline runs: KubeRay deploys it, or submits the job, once this is ready.
        httpGet: { path: /api/healthz, port: 52365 }
        {{- else }}
        # Whether the pipeline lives on this node: a gauge is gone 20 s after whoever set it.
        exec: { command: [bash, -c, {{ include "stream-embedder.lives" .part | quote }}] }
        {{- end }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 3
      resources:
        {{- $resources := deepCopy $group.resources }}
        {{- if .gpus }}
        {{- $limits := merge (dict $group.resource .gpus) (default dict $resources.limits) }}
        {{- $requests := merge (dict $group.resource .gpus) (default dict $resources.requests) }}
        {{- $resources = dict "requests" $requests "limits" $limits }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        - { name: settings, mountPath: /etc/stream-embedder, readOnly: true }
        - { name: tmp, mountPath: /tmp }
        - { name: cache, mountPath: /cache }
        - { name: shared-mem, mountPath: /dev/shm }
        {{- if $values.tls.enabled }}
        - { name: tls, mountPath: /etc/ray/tls, readOnly: true }
        {{- end }}
        {{- range $index, $file := $values.files }}
        {{- if or (ne $.part "encoders") .encoders }}
        - { name: file-{{ $index }}, mountPath: {{ .path }}, readOnly: true }
        {{- end }}
        {{- end }}
        {{- with $group.extraVolumeMounts }}{{ toYaml . | nindent 8 }}{{ end }}
  volumes:
    - {{ include "stream-embedder.settingsVolume" $root | nindent 6 | trim }}
    - { name: tmp, emptyDir: {} }
    {{- if eq .part "head" }}
    - { name: autoscaler-tmp, emptyDir: {} }
    {{- end }}
    {{- if and (eq $values.modelCache.kind "pvc") (ne .part "head") }}
    - name: cache
      persistentVolumeClaim: { claimName: {{ $values.modelCache.pvc.existingClaim | default (printf "%s-models" (include "stream-embedder.fullname" $root)) }} }
    {{- else }}
    - { name: cache, emptyDir: { sizeLimit: {{ $values.modelCache.sizeLimit }} } }
    {{- end }}
    - { name: shared-mem, emptyDir: { medium: Memory, sizeLimit: {{ $group.objectStoreMemory }} } }
    {{- if $values.tls.enabled }}
    - name: ca
      secret: { secretName: {{ $values.tls.caSecret }}, defaultMode: 0440 }
    - { name: tls, emptyDir: { medium: Memory, sizeLimit: 1Mi } }
    - name: certificate
      configMap: { name: {{ include "stream-embedder.fullname" $root }}-certificate }
    {{- end }}
    {{- range $index, $file := $values.files }}
    {{- if or (ne $.part "encoders") .encoders }}
    - name: file-{{ $index }}
      {{- include "stream-embedder.fileSource" . | nindent 6 }}
    {{- end }}
    {{- end }}
    {{- with $group.extraVolumes }}{{ toYaml . | nindent 4 }}{{ end }}
{{- end -}}

{{- define "stream-embedder.tlsEnv" -}}
{{- if .Values.tls.enabled -}}
- { name: RAY_USE_TLS, value: "1" }
- { name: RAY_TLS_SERVER_CERT, value: /etc/ray/tls/tls.crt }
- { name: RAY_TLS_SERVER_KEY, value: /etc/ray/tls/tls.key }
- { name: RAY_TLS_CA_CERT, value: /etc/ray/tls/ca.crt }
{{- end }}
{{- end -}}

{{/* Asks the node's metrics for a gauge of a reader, an encoder or who answers queries, with what every bash has. */}}
{{- define "stream-embedder.lives" -}}
{{- $gauge := get (dict "readers" "(encoders_running|queries_waiting)" "encoders" "model_load_seconds" "workers" "(encoders_running|queries_waiting|model_load_seconds)") . -}}
exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3 && grep -qE '^ray_stream_embedder_{{ $gauge }}[{ ]' <&3
{{- end -}}

{{/* The volume of an item of `files`. */}}
{{- define "stream-embedder.fileSource" -}}
{{- if .secret -}}
secret: { secretName: {{ .secret }}, defaultMode: 0440 }
{{- else if .configMap -}}
configMap: { name: {{ .configMap }} }
{{- else -}}
projected:
  defaultMode: 0440
  sources:
    - serviceAccountToken: { path: token, audience: {{ .token.audience }}, expirationSeconds: {{ .token.expirationSeconds | default 3600 }} }
{{- end -}}
{{- end -}}
