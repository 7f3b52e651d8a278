//go:build linux

package programs

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSSH moves a server of ssh with an open session, in which a program waits and another one writes, and with a forwarded port. The
// client is elsewhere, and checks by its keys that nothing between was lost or changed.
func TestSSH(t *testing.T) {
	s := begin(t, time.Minute)
	const address = "10.77.0.84"
	s.program("ssh")
	dir := s.disk("ssh")
	for _, key := range []string{"host", "client"} {
		s.On("host1", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	for _, h := range []string{"host1", "host2", "host3"} { // where a child without rights is locked in
		s.On(h, "mkdir", "-p", "/run/sshd")
	}
	s.Workload("sshd", address+"/24", s.program("sshd"), "-D", "-e", "-f", "/dev/null", "-h", filepath.Join(dir, "host"), "-p", "22",
		"-o", "AuthorizedKeysFile="+filepath.Join(dir, "client.pub"), "-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PidFile=none", "-o", "PermitRootLogin=yes")
	s.AwaitListener(address + ":22")
	k := s.Terminal("host3", 30, 100, s.program("ssh"), "-tt", "-F", "/dev/null", "-i", filepath.Join(dir, "client"), "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2", "root@"+address,
		"exec env PS1='ready> ' HISTFILE= bash --norc --noprofile -i")
	k.Await("ready> ")
	k.Types("bind 'set enable-bracketed-paste off'; echo up $((6*7))\n")
	k.Await("up 42\r\n")
	for i, to := range []string{"host2", "host3", "host1"} {
		k.Types(fmt.Sprintf("read -p \"ask$((%d+1))> \" answer\n", i))
		k.Await(fmt.Sprintf("ask%d> ", i+1))
		s.Move("sshd", to, "--files", "shared", "--max-downtime", "5s")
		k.Types(fmt.Sprintf("after %s\n", to))
		k.Types("echo \"<$answer>\"\n")
		k.Await("<after " + to + ">\r\n")
		// A new connection is let in where it is now.
		got := s.On("host3", "ssh", "-F", "/dev/null", "-i", filepath.Join(dir, "client"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "LogLevel=ERROR", "root@"+address, "echo here $((40+2))")
		if !strings.Contains(got, "here 42") {
			t.Errorf("a new session on %s says %q", to, got)
		}
	}
	// Much in one direction, across a move.
	k.Types("for i in $(seq 20000); do echo line-$i; done | cksum; seq 200000 | tail -n 1; echo done-$((1+1))\n")
	s.Move("sshd", "host2", "--files", "shared", "--max-downtime", "5s")
	k.Await("200000\r\n")
	k.Await("done-2\r\n")
	k.Types("exit 7\n")
	if code := k.Code(); code != 7 {
		t.Errorf("ssh exits with %d, the shell with 7", code)
	}
}
