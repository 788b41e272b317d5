#!/bin/bash
# networks.sh: the tests of networks that take long or need more than the others:
# 10,000 pods through a small range, Flannel between hosts, ufw and docker beside us,
# and, in the VM, the CNI plugins that need another kernel.
set -eu
cd "$(dirname "$0")/.."

if ! command -v etcd >/dev/null; then
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends etcd-server >/dev/null
fi
go test -count=1 -timeout 30m ./network/bridge -run '^TestChurn$' -v -args -churn 10000
go test -tags integration -count=1 -timeout 10m ./integration -run '^TestFlannel$' -v
go test -tags integration -count=1 -timeout 10m ./integration -run '^TestNeighbours$' -v
hack/vm-test.sh networks
