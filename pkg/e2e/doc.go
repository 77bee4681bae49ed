// Package e2e holds the tests that use Culvert the way its users do: real relay
// processes, real sockets, and programs that are not ours (curl, nginx, PostgreSQL,
// OpenSSH, ffmpeg, GStreamer, tftp-hpa, qemu, python3-websockets) on both ends of the tunnel. It also holds the benchmark
// table. The package has no code of its own.
//
//	go test ./pkg/e2e                 # all of it, a few minutes
//	go test -short ./pkg/e2e          # smaller transfers and floods
//	go test ./pkg/e2e -run TestVideoOverCuts -long   # a minute of video over a link that is cut
//	go test ./pkg/e2e -run TestTFTP -long            # large files by each client of TFTP, and longer cuts
//	go test ./pkg/e2e -run '^$' -bench BenchmarkTable -benchtime 1x
//	go test ./pkg/e2e -run '^$' -bench 'BenchmarkTable/rr1$' -benchtime 1x -profile /tmp/prof
//	go test ./pkg/e2e -run '^$' -bench 'BenchmarkTable/link-1$' -benchtime 1x -paths direct,culvert
//	go test ./pkg/e2e -run '^$' -bench BenchmarkTFTP -benchtime 1x
//
// The tests need Linux (they read /proc and use 127.0.0.0/8 as many visitors), root for
// those over an emulated link (see pkg/netem), and the programs that .ci/tools installs:
// Debian packages, and what it builds into .ci/bin. A missing program fails the test that
// needs it; nothing is skipped.
package e2e
