# Culvert. `make` alone lists what there is.

VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME    ?= 5s
ONCE        ?=
NAMES       ?= localhost 127.0.0.1

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## put relay-public, relay-private and tunnelctl into bin/
	go build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION)' -o bin/ ./cmd/...

demo: build ## both relays and sample servers on this machine, until Ctrl-C (ONCE=1: try everything and exit)
	bin/tunnelctl demo --dir certs $(if $(ONCE),--once)

test: ## everything, with the race detector; installs the programs the tests use (as root on Debian)
	.ci/tools
	go test -race -p 4 $$(go list ./... | grep -v /e2e$$) # more than two processors: half of the time a package waits
	go test -race -timeout 14m ./pkg/e2e # by itself: other people's programs have time-outs

check: ## vet, staticcheck, gofmt, and that it builds for macOS and Windows
	@out=$$(gofmt -l cmd pkg); if [ -n "$$out" ]; then echo "run gofmt -w on:"; echo "$$out"; exit 1; fi
	go vet ./...
	go run $(STATICCHECK) ./...
	GOOS=darwin go vet ./... && GOOS=darwin go build -o /dev/null ./...
	GOOS=windows go vet ./... && GOOS=windows go build -o /dev/null ./...

fuzz: ## every fuzz target for FUZZTIME (5s)
	.ci/fuzz $(FUZZTIME)

bench: ## the benchmark table, beside direct connections and two nginx hops joined by TLS
	.ci/tools
	go test ./pkg/e2e -run '^$$' -bench 'BenchmarkTable|BenchmarkTFTP' -benchtime 1x -timeout 60m

certs: build ## a development CA and a certificate for NAMES in certs/
	bin/tunnelctl certs dev certs $(NAMES)

clean: ## remove what the other targets made
	rm -rf bin
	rm -f certs/*.pem certs/*.key

.PHONY: help build demo test check fuzz bench certs clean
