#!/usr/bin/env bash
# Writes the go.mod of another version of Kubernetes: update.sh v1.37.2. k8s.io/kubernetes is a dependency as any other, but
# for its staging modules, which it requires as v0.0.0: each is replaced by its release that belongs to the version.
set -euo pipefail
cd "$(dirname "$0")"
version=${1:?give a version, such as v1.37.2}
staging=v0.${version#v1.}

rm -f go.mod go.sum
go mod init understudy.mesh/tests/cluster/gomod/k8s
go mod edit -go=1.26.0 -require="k8s.io/kubernetes@$version"
theirs=$(go mod download -json "k8s.io/kubernetes@$version" | sed -n 's/.*"GoMod": "\(.*\)",*/\1/p')
while read -r module; do
  go mod edit -replace="$module=$module@$staging"
done < <(sed -n 's/^\t*\(k8s.io\/[a-z0-9-]*\) v0\.0\.0$/\1/p' "$theirs")
for program in kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet; do
  go mod edit -tool="k8s.io/kubernetes/cmd/$program"
done
go mod tidy
