#!/bin/bash
# bench.sh: the Go benchmarks, then the medians of a pod's life over the CRI
# socket, then pulls and imports of a large image made from Debian packages, on
# hosts made of namespaces. Only figures of one run on one idle machine can be
# compared.
set -eu
cd "$(dirname "$0")/.."

mapfile -t packages < <(grep -rlE --include='*_test.go' '^func Benchmark' cmd cri images internal network pod runtime | xargs -r -n 1 dirname | sort -u | sed 's|^|./|')
if [ ${#packages[@]} -gt 0 ]; then
  go test -run '^$' -bench . -benchtime "${BENCHTIME:-1s}" "${packages[@]}"
fi
go run ./integration/cribench -bin bin -json bin/cribench.json
go build -o bin/imagebench ./integration/imagebench
bin/imagebench -bin bin -json bin/imagebench.json
