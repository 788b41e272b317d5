# `make` prints the targets; `make run` and `make test` set up all they need.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
PREFIX  ?= /usr/local
DESTDIR ?=
KEEP    ?=
RUN     ?=

GO          ?= go
GOFLAGS_ALL := -trimpath -buildvcs=false
LDFLAGS     := -s -w -X main.version=$(VERSION)
KEEPER_LDFLAGS := $(LDFLAGS) -linkmode external -extldflags "-static"

GOLANGCI_VERSION := v2.15.0
GOLANGCI := bin/tools/golangci-lint-$(GOLANGCI_VERSION)

.PHONY: help
help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' Makefile

.PHONY: deps
deps: ## install the Debian packages that build and tests need
	@hack/deps.sh

.PHONY: build
build: ## build bin/pausa and bin/pausa-keeper, with pause inside
	runtime/pause/build.sh
	CGO_ENABLED=0 $(GO) build $(GOFLAGS_ALL) -ldflags '$(LDFLAGS)' -o bin/pausa ./cmd/pausa
	CGO_ENABLED=1 $(GO) build $(GOFLAGS_ALL) -tags 'seccomp netgo osusergo' -ldflags '$(KEEPER_LDFLAGS)' -o bin/pausa-keeper ./cmd/pausa-keeper

.PHONY: arm64
arm64: ## cross-build bin/arm64/pausa and its keeper (needs gcc-aarch64-linux-gnu)
	@LDFLAGS='$(LDFLAGS)' KEEPER_LDFLAGS='$(KEEPER_LDFLAGS)' hack/arm64.sh

.PHONY: run
run: deps build ## two pods behind a Service on this machine, in a network of their own (KEEP=1 leaves them running)
	@KEEP='$(KEEP)' hack/run.sh

.PHONY: test
test: deps build ## everything that CI runs: lint, unit, fuzz, critest, VM, integration
	@hack/test.sh

.PHONY: lint
lint: $(GOLANGCI) ## golangci-lint, go vet, shellcheck
	@hack/lint.sh $(GOLANGCI)

$(GOLANGCI):
	GOBIN=$(CURDIR)/bin/tools/$(GOLANGCI_VERSION) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv bin/tools/$(GOLANGCI_VERSION)/golangci-lint $@
	rmdir bin/tools/$(GOLANGCI_VERSION)

.PHONY: bench
bench: deps build ## Go benchmarks, the CRI socket's medians, pulls and imports of a large image
	@hack/bench.sh

.PHONY: hostile
hostile: ## an image of a million files: how much memory it takes
	@$(GO) test ./images -count=1 -timeout 60m -v -run 'TestManyTinyFiles$$' -tinyfiles 1000000

.PHONY: soak
soak: deps build ## ten minutes of 200 DNS questions a second while pods come and go; 10,000 transitions told as events
	$(GO) test -tags integration ./integration -run 'TestNamesWhilePodsChange$$' -v -timeout 20m -dns-questions 120000
	$(GO) test -tags integration ./integration -run 'TestContainerEvents$$' -v -timeout 20m -transitions 10000

.PHONY: bench-services
bench-services: deps build ## what 10,000 Services cost; PROXY=path of a kube-proxy measures that as well
	@$(GO) run ./integration/servicebench -bin bin $(if $(PROXY),-kube-proxy '$(PROXY)')

.PHONY: critest
critest: deps build bin/tools/critest ## the Kubernetes CRI validation suite; RUN=regexp for some of it, RUNTIME=/usr/sbin/runc
	@$(GO) run ./integration/critrun -focus '$(RUN)' -runtime '$(RUNTIME)'

bin/tools/critest: integration/critest/go.mod integration/critest/go.sum
	cd integration/critest && CGO_ENABLED=0 $(GO) test -c -o ../../$@ sigs.k8s.io/cri-tools/cmd/critest

bin/tools/cnitool: integration/critest/go.mod integration/critest/go.sum
	cd integration/critest && CGO_ENABLED=0 $(GO) build -o ../../$@ github.com/containernetworking/cni/cnitool

bin/tools/crictl: integration/critest/go.mod integration/critest/go.sum
	cd integration/critest && CGO_ENABLED=0 $(GO) build -ldflags '-s -w' -o ../../$@ sigs.k8s.io/cri-tools/cmd/crictl

bin/tools/cni: integration/nettools/go.mod integration/nettools/go.sum
	mkdir -p $@
	cd integration/nettools && CGO_ENABLED=0 $(GO) build -ldflags '-s -w' -o ../../$@/ tool
	touch $@

bin/tools/flanneld: integration/flannel/go.mod integration/flannel/go.sum
	cd integration/flannel && CGO_ENABLED=1 $(GO) build -ldflags '-s -w' -o ../../$@ github.com/flannel-io/flannel

KUBE_VERSION := k8s.io/component-base/version

bin/tools/kubelet: integration/kubelet/go.mod integration/kubelet/go.sum
	cd integration/kubelet && CGO_ENABLED=0 $(GO) build $(GOFLAGS_ALL) -ldflags '-s -w -X $(KUBE_VERSION).gitVersion=v1.37.2 -X $(KUBE_VERSION).gitMajor=1 -X $(KUBE_VERSION).gitMinor=37' -o ../../$@ k8s.io/kubernetes/cmd/kubelet

.PHONY: kubelet
kubelet: deps build bin/tools/kubelet ## all tests with a real kubelet; RUN=regexp for some of them
	$(GO) test -tags 'integration kubelet' -count=1 -timeout 20m -v -run 'Kubelet.*$(RUN)' ./integration

bin/tools/firewalls: hack/firewalls.sh
	hack/firewalls.sh $@
	touch $@

.PHONY: networks
networks: deps build bin/tools/cni bin/tools/flanneld bin/tools/firewalls ## what takes long: 10,000 pods through a /28, Flannel, firewalls of others, CNI plugins in the VM
	@hack/networks.sh

.PHONY: vm
vm: deps build ## integration tests in a VM with cgroup v2 and AppArmor; RUN=regexp for some of them
	@RUN='$(RUN)' hack/vm-test.sh tests

.PHONY: vm-critest
vm-critest: deps build ## the whole Kubernetes CRI suite in that VM, some minutes; RUN=regexp for some of it, RUNTIME=/usr/bin/crun
	@RUN='$(RUN)' RUNTIME='$(RUNTIME)' hack/vm-test.sh critest

.PHONY: vm-systemd
vm-systemd: deps build ## the systemd cgroup driver and a reboot, in a VM with systemd, on cgroup v2 and hybrid
	@hack/vm-test.sh systemd

.PHONY: install
install: build ## install the binaries and the unit under PREFIX (/usr/local)
	install -D -m 0755 -t '$(DESTDIR)$(PREFIX)/bin' bin/pausa bin/pausa-keeper
	install -D -m 0644 -t '$(DESTDIR)$(PREFIX)/lib/systemd/system' docs/pausa.service

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
	find runtime/pause -name 'pause-*' -type f -delete

.PHONY: docs
docs: build ## renew docs/config.md
	@{ printf '# Settings\n\nA TOML file, by default `/etc/pausa/config.toml` or the one of `--config`. Each value can also be set by the environment\nvariable named beside it. `pausa config` prints what holds and where it came from.\n\n```toml\n'; bin/pausa config --default; printf '```\n'; } > docs/config.md
