package pki

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func newCA(t testing.TB) *CA {
	t.Helper()
	ca, err := NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issueDir(t testing.TB, ca *CA, name string, rs ...Role) string {
	t.Helper()
	c, err := ca.Issue(name, []net.IP{net.IPv4(127, 0, 0, 1)}, rs...)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), name)
	if err := c.WriteDir(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// handshake returns what each side makes of a connection: the server's view of its client, and both errors.
func handshake(t *testing.T, server, client *tls.Config) (Identity, error, error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	type seen struct {
		id  Identity
		err error
	}
	done := make(chan seen, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			done <- seen{err: err}
			return
		}
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		s := tls.Server(c, server)
		if err := s.Handshake(); err != nil {
			done <- seen{err: err}
			return
		}
		id, err := PeerIdentity(s.ConnectionState())
		_, _ = s.Write([]byte("x"))
		done <- seen{id, err}
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	c := tls.Client(conn, client)
	_, clientErr := io.ReadFull(c, make([]byte, 1))
	s := <-done
	return s.id, s.err, clientErr
}

func TestMutualTLS(t *testing.T) {
	ca := newCA(t)
	caDir := t.TempDir()
	if err := ca.WriteDir(caDir); err != nil {
		t.Fatal(err)
	}
	ca, err := LoadCA(caDir)
	if err != nil {
		t.Fatal(err)
	}
	host1, host2 := issueDir(t, ca, "host1", RoleNode, RoleServer), issueDir(t, ca, "host2", RoleNode)
	stranger := issueDir(t, newCA(t), "host2", RoleNode)

	server, err := ServerTLS(host1)
	if err != nil {
		t.Fatal(err)
	}
	client := func(dir, name string) *tls.Config {
		c, err := ClientTLS(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}

	id, serverErr, clientErr := handshake(t, server, client(host2, "host1"))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("members of one cluster: server says %v, client says %v", serverErr, clientErr)
	}
	if id.Name != "host2" || !slices.Equal(id.Roles, []Role{RoleNode}) || !id.Has(RoleNode) || id.Has(RoleServer, RoleOperator) {
		t.Errorf("the server sees %+v", id)
	}
	if _, _, err := handshake(t, server, client(host2, "host3")); err == nil {
		t.Error("host1 was accepted as host3")
	}
	if _, serverErr, _ := handshake(t, server, client(stranger, "host1")); serverErr == nil {
		t.Error("a client of another authority was accepted")
	}
	bare := client(host2, "host1")
	bare.Certificates = nil
	if _, serverErr, _ := handshake(t, server, bare); serverErr == nil {
		t.Error("a client without a certificate was accepted")
	}
	old := client(host2, "host1")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, serverErr, _ := handshake(t, server, old); serverErr == nil {
		t.Error("TLS 1.2 was accepted")
	}
	if _, err := PeerIdentity(tls.ConnectionState{}); err == nil {
		t.Error("a connection without a certificate has an identity")
	}
}

func TestFilesAreNamedWhenWrong(t *testing.T) {
	ca := newCA(t)
	other := issueDir(t, ca, "other")
	tests := []struct {
		name   string
		breaks func(dir string) error
		want   string
	}{
		{"no key", func(d string) error { return os.Remove(filepath.Join(d, KeyFile)) }, KeyFile},
		{"garbage", func(d string) error { return os.WriteFile(filepath.Join(d, CertFile), []byte("hello"), 0o600) }, CertFile},
		{"key of another", func(d string) error {
			b, err := os.ReadFile(filepath.Join(other, KeyFile))
			return errors.Join(err, os.WriteFile(filepath.Join(d, KeyFile), b, 0o600))
		}, "does not belong"},
		{"authority of another", func(d string) error {
			return os.WriteFile(filepath.Join(d, CAFile), encodeCert(newCA(t).cert), 0o600)
		}, "not signed by"},
		{"too large", func(d string) error { return os.WriteFile(filepath.Join(d, CAFile), make([]byte, maxFile+1), 0o600) }, "bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := issueDir(t, ca, "host1")
			if err := tt.breaks(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := ServerTLS(dir); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestIssueRefuses(t *testing.T) {
	ca := newCA(t)
	if _, err := ca.Issue("", nil); err == nil {
		t.Error("a certificate without a name")
	}
	if _, err := ca.Issue("x", nil, "root"); err == nil {
		t.Error("a role that does not exist")
	}
	if _, err := ClientTLS(issueDir(t, ca, "x"), ""); err == nil {
		t.Error("a client that expects no name")
	}
}

func TestModes(t *testing.T) {
	dir := issueDir(t, newCA(t), "host1")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v (%v)", e.Name(), info.Mode(), err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	ca := newCA(f)
	key, err := encodeKey(ca.key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(encodeCert(ca.cert))
	f.Add(key)
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := decodeCert(data); err == nil && c == nil {
			t.Error("neither a certificate nor an error")
		}
		if k, err := decodeKey(data); err == nil && k == nil {
			t.Error("neither a key nor an error")
		}
	})
}
