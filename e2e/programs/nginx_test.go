//go:build linux

package programs

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"migrate/e2e/cluster"
)

// nginxConf has two workers, which share a listener and their counters in shared memory.
const nginxConf = `daemon off;
user root;
worker_processes 2;
pid %[1]s/nginx.pid;
error_log stderr notice;
events { worker_connections 256; }
http {
	access_log off;
	sendfile on;
	keepalive_requests 1000000;
	limit_req_zone $binary_remote_addr zone=rate:1m rate=1000000r/s;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		listen 80;
		root %[1]s/www;
		location /large { limit_rate 8m; }
		location /small { limit_req zone=rate burst=1000 nodelay; }
	}
}
`

// getter asks for a file over one connection and compares what it gets.
type getter struct {
	path   string
	want   [sha256.Size]byte
	conn   *cluster.HTTPConn
	gets   atomic.Int64
	failed atomic.Bool
	err    error // when it has failed
}

// run asks until stop is closed. A request that was begun is completed.
func (g *getter) run(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		sum := sha256.New()
		g.err = g.conn.Get(g.path, sum)
		if g.err == nil && [sha256.Size]byte(sum.Sum(nil)) != g.want {
			g.err = fmt.Errorf("%s has another hash than the file", g.path)
		}
		if g.err != nil {
			g.failed.Store(true)
			return
		}
		g.gets.Add(1)
	}
}

// TestNginx moves nginx with its workers while clients ask for small files and are sent large ones.
func TestNginx(t *testing.T) {
	s := begin(t, 2*time.Minute)
	const endpoint = "10.77.0.81:80"
	bin, dir := s.program("/usr/sbin/nginx"), s.disk("nginx")
	files := map[string][sha256.Size]byte{}
	random := rand.NewChaCha8([32]byte{1})
	if err := os.Mkdir(filepath.Join(dir, "www"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"/small": 3000, "/large": 2 << 20} {
		data := make([]byte, size)
		if _, err := random.Read(data); err != nil {
			t.Fatal(err)
		}
		files[name] = sha256.Sum256(data)
		if err := os.WriteFile(filepath.Join(dir, "www", name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, dir), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Workload("nginx", "10.77.0.81/24", bin, "-c", conf, "-e", "stderr")
	s.AwaitListener(endpoint)
	var getters []*getter
	for _, path := range []string{"/large", "/large", "/small", "/small", "/small", "/small", "/small", "/small"} {
		getters = append(getters, &getter{path: path, want: files[path], conn: s.DialHTTP(endpoint)})
	}
	stop := make(chan struct{})
	var running sync.WaitGroup
	for _, g := range getters {
		running.Go(func() { g.run(stop) })
	}
	end := sync.OnceFunc(func() { close(stop); running.Wait() })
	defer end()
	s.progress(getters)
	for _, to := range []string{"host2", "host3"} {
		s.Move("nginx", to, "--max-downtime", "5s")
		s.progress(getters)
	}
	end()
	for _, g := range getters {
		if g.err != nil {
			t.Errorf("after %d requests: %v", g.gets.Load(), g.err)
		}
	}
}

// progress waits until each client has made another two requests, the second of which began after this call.
func (s *scope) progress(getters []*getter) {
	s.Helper()
	for _, g := range getters {
		for want := g.gets.Load() + 2; g.gets.Load() < want; time.Sleep(5 * time.Millisecond) {
			if g.failed.Load() {
				s.Fatalf("after %d requests: %v", g.gets.Load(), g.err)
			}
			if s.Ctx.Err() != nil {
				s.Fatalf("a client of %s stands at %d requests", g.path, g.gets.Load())
			}
		}
	}
}
