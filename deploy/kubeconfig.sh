#!/bin/sh
# Prints a kubeconfig for the account of rbac.yaml, made with the kubectl context in use. Its token is bound to the Secret
# edgemesh/edgemesh-server: deleting that ends it.
set -eu

kubectl apply -f - >&2 <<'YAML'
apiVersion: v1
kind: Secret
metadata:
  name: edgemesh-server
  namespace: edgemesh
  annotations: { kubernetes.io/service-account.name: edgemesh-server }
type: kubernetes.io/service-account-token
YAML
of() { kubectl -n edgemesh get secret edgemesh-server -o "jsonpath={.data.$1}"; }
# The token controller fills the Secret in a moment later.
tries=0
until [ -n "$(of token)" ]; do
  tries=$((tries + 1))
  [ "$tries" -lt 30 ] || { echo "error: the cluster gave the account edgemesh/edgemesh-server no token; try: kubectl apply -f deploy/rbac.yaml" >&2; exit 1; }
  sleep 1
done
cat <<YAML
apiVersion: v1
kind: Config
current-context: edgemesh
contexts: [{ name: edgemesh, context: { cluster: edgemesh, user: edgemesh } }]
clusters:
  - name: edgemesh
    cluster:
      server: $(kubectl config view --minify -o 'jsonpath={.clusters[0].cluster.server}')
      certificate-authority-data: $(of 'ca\.crt')
users:
  - name: edgemesh
    user: { token: $(of token | base64 -d) }
YAML
