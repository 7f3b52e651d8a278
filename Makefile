# Targets for people and for CI. `make demo` and `make test` do all their own set-up on a fresh Debian 12 with Go.

GO      ?= go
BIN     := bin/migrate
VERSION ?= $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

export CGO_ENABLED = 0

.PHONY: all build packages docs deps demo fresh-demo test random faults vm-smoke race lint vet fmt arm64 bench generate clean ci

all: build

build: $(BIN)

$(BIN): FORCE
	@mkdir -p bin
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./migrate

.PHONY: FORCE
FORCE:

# Debian packages that the tests use: programs that are moved, and a compiler for test workloads.
deps:
	@deploy/debian-deps

# .deb and .rpm, in dist/.
packages: build
	VERSION=$(VERSION) deploy/make-packages

# Man pages, in build/man, from what the commands say of themselves.
docs: build
	$(BIN) man build/man

demo: build
	@deploy/debian-deps demo
	$(BIN) demo $(DEMOFLAGS)

# The same on a Debian 12 that is made for it and has nothing but Go, make and git.
fresh-demo:
	@deploy/fresh-debian make demo

# Every test, as root on the real kernel. Tests share the machine with the programs that they move, so packages run one after another.
test: build deps
	$(GO) test -p 1 -timeout 20m $(TESTFLAGS) ./...

# Programs that map, unmap, move, protect and write at random, copied while they do so: many more of them than `make test` has.
SEEDS ?= 1000
random:
	$(GO) test -timeout 2h ./engine/mem -run 'TestRandomProgram' -seeds $(SEEDS)

# Every step of a move with every fault, and PAIRS pairs of faults at random from seed SEED on; prints the table. It takes hours:
# FAULTFLAGS='-only "freeze.after / kill"' is a part of it.
PAIRS ?= 100
SEED  ?= 1
FAULTFLAGS ?= -full
faults:
	$(GO) test -v -timeout 12h ./e2e/faults $(FAULTFLAGS) -seeds $(PAIRS) -seed $(SEED)

# The tool on Debian's own 6.12 kernel, in a virtual machine without KVM: VMFLAGS='-kernel 6.1 -- -steps memory' and the like.
vm-smoke:
	@deploy/debian-vm-deps
	$(GO) run ./e2e/vm $(VMFLAGS)

# The race detector needs cgo; it covers the packages that share memory between goroutines.
race: deps
	CGO_ENABLED=1 $(GO) test -race -p 1 -timeout 15m ./coordinator/... ./pagexfer/... ./agent/

fmt:
	@out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not gofmt-ed:"; echo "$$out"; exit 1; fi

vet:
	$(GO) vet ./...

arm64:
	GOARCH=arm64 $(GO) vet ./...
	GOARCH=arm64 $(GO) build -o /dev/null ./migrate

lint: fmt vet arm64
	$(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...

bench: build deps
	$(GO) test -run '^$$' -bench . -benchtime 1x -timeout 30m ./e2e/bench

# Generated protobuf code is committed; this target needs protoc (Debian: protobuf-compiler).
generate:
	@deploy/generate-proto

clean:
	rm -rf bin build dist

ci: lint test race
