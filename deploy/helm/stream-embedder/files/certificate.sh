# A key and a certificate for this pod, signed by the CA: certificate.sh CA_FOLDER OUT_FOLDER DAYS PART, with POD_IP in the
# environment. FQ_RAY_IP, which KubeRay sets on every pod, is the name of the head's service: the head's alone carries it.
set -euo pipefail
ca=$1 out=$2 days=$3 part=$4
case "$POD_IP" in *:*) loopback=::1 ;; *) loopback=127.0.0.1 ;; esac
names="DNS:localhost,IP:$loopback,IP:$POD_IP"
if [ "$part" = head ] && [ -n "${FQ_RAY_IP:-}" ]; then names="$names,DNS:$FQ_RAY_IP"; fi
umask 077
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=ray" \
  -keyout "$out/tls.key" -out "$out/request" 2>/dev/null
openssl x509 -req -in "$out/request" -CA "$ca/ca.crt" -CAkey "$ca/ca.key" -sha256 -days "$days" -out "$out/tls.crt" \
  -set_serial "0x$(openssl rand -hex 16)" -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth,clientAuth\n' "$names") 2>/dev/null
rm "$out/request"
cp "$ca/ca.crt" "$out/ca.crt"
