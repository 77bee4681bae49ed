//go:build linux

package e2e

import (
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// grpcCases are the interoperability cases of gRPC that need no account in somebody's cloud,
// and that grpc-go's server does for its client without a tunnel (pick_first_unary and those
// of ORCA it does not).
var grpcCases = []string{
	"empty_unary", "large_unary", "client_streaming", "server_streaming", "ping_pong", "empty_stream",
	"timeout_on_sleeping_server", "cancel_after_begin", "cancel_after_first_response",
	"status_code_and_message", "special_status_message", "custom_metadata",
	"unimplemented_method", "unimplemented_service",
}

// startGRPC publishes grpc-go's interoperability server as https://grpc.example.com.
func startGRPC(t testing.TB) *system {
	t.Helper()
	addr := freeAddr(t)
	_, port, _ := net.SplitHostPort(addr)
	server := start(t, "grpc-interop-server", exec.Command(builtTool(t, "grpc-interop-server"), "--port", port))
	awaitPort(t, server, "tcp", addr)
	return startSystem(t, service{"grpc", "https://grpc.example.com", "h2c://" + addr})
}

// grpc is grpc-go's interoperability client.
func (s *system) grpc(args ...string) *exec.Cmd {
	s.t.Helper()
	host, port, _ := strings.Cut(s.https, ":")
	return exec.Command(builtTool(s.t, "grpc-interop-client"), append([]string{"--use_tls", "--use_test_ca", "--ca_file", certFile("ca.pem"),
		"--server_host", host, "--server_port", port, "--server_host_override", "grpc.example.com"}, args...)...)
}

func TestGRPC(t *testing.T) {
	t.Parallel()
	s := startGRPC(t)
	for _, c := range grpcCases {
		t.Run(c, func(t *testing.T) { run(t, s.grpc("--test_case", c)) })
	}
	soak := func(test string, args ...string) {
		t.Helper()
		run(t, s.grpc(append([]string{"--test_case", test, "--soak_num_threads", "10", "--soak_overall_timeout_seconds", "180",
			"--soak_per_iteration_max_acceptable_latency_ms", "30000"}, args...)...))
	}
	t.Run("many at a time", func(t *testing.T) {
		soak("rpc_soak", "--soak_iterations", "200")
		soak("channel_soak", "--soak_iterations", "100")
	})
	t.Run("while the link is cut", func(t *testing.T) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		cuts := 0
		wg.Go(func() {
			// On a slow machine a link needs more than a second to be of use.
			for at := s.link.total(); ; {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
				}
				if now := s.link.total(); now > at+256<<10 {
					cuts, at = cuts+s.link.cut(), now
				}
			}
		})
		for _, c := range grpcCases {
			run(t, s.grpc("--test_case", c))
		}
		soak("rpc_soak", "--soak_iterations", "400", "--soak_min_time_ms_between_rpcs", "50")
		close(stop)
		wg.Wait()
		if cuts == 0 {
			t.Error("there was no link to cut")
		}
	})
}
