//go:build linux

package programs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"migrate/e2e/cluster"
	"migrate/e2e/lab"
)

const (
	postgresAddr = "10.77.0.80"
	postgresPort = "5432"
)

// postgres is a database of Debian's package.
type postgres struct {
	*scope
	bin, data string
	owner     syscall.Credential
}

// postgres makes a database in a directory of the shared storage.
func (s *scope) postgres() *postgres {
	s.Helper()
	list, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(list) == 0 {
		s.Fatalf("postgresql is not installed; `make deps` installs it (%v)", err)
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		s.Fatal(err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		s.Fatal(err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		s.Fatal(err)
	}
	p := &postgres{scope: s, bin: list[len(list)-1], owner: syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	dir := s.disk("postgres")
	if err := os.Chown(dir, uid, gid); err != nil {
		s.Fatal(err)
	}
	p.data = filepath.Join(dir, "data")
	cmd := exec.CommandContext(s.Ctx, filepath.Join(p.bin, "initdb"), "--auth=trust", "--no-sync", "--no-locale", "--encoding=UTF8", "--pgdata="+p.data)
	cmd.Dir, cmd.SysProcAttr = dir, &syscall.SysProcAttr{Credential: &p.owner}
	if out, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("initdb: %v\n%s", err, out)
	}
	hba := "local all all trust\nhost all all 10.77.0.0/24 trust\n"
	if err := os.WriteFile(filepath.Join(p.data, "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		s.Fatal(err)
	}
	return p
}

// client makes a command that runs where clients are.
func (p *postgres) client(name string, args ...string) *lab.Cmd {
	args = append([]string{filepath.Join(p.bin, name), "--host", postgresAddr, "--port", postgresPort, "--username", "postgres"}, args...)
	return cluster.Hosts.Client().Command(p.Ctx, args...)
}

// query asks for one value.
func (p *postgres) query(text string) string {
	p.Helper()
	out, err := p.client("psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", text, "postgres").Output()
	if err != nil {
		p.Fatalf("%s: %v", text, err)
	}
	return strings.TrimSpace(string(out))
}

func (p *postgres) number(text string) int64 {
	p.Helper()
	n, err := strconv.ParseInt(p.query(text), 10, 64)
	if err != nil {
		p.Fatalf("%s: %v", text, err)
	}
	return n
}

// TestPostgres moves a PostgreSQL server with its backends while eight clients of pgbench make transactions.
func TestPostgres(t *testing.T) {
	s := begin(t, 2*time.Minute)
	p := s.postgres()
	p.Run("postgres", []string{"--addr", postgresAddr + "/24", "--user", "postgres", "--cwd", p.data},
		filepath.Join(p.bin, "postgres"), "-D", p.data, "-h", "0.0.0.0", "-p", postgresPort, "-k", p.data,
		"-c", "fsync=off", "-c", "shared_buffers=32MB", "-c", "autovacuum_naptime=1s")
	p.Logs("postgres", "ready to accept connections")
	if err := p.client("pgbench", "--initialize", "--scale", "1", "--quiet", "postgres").Run(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	bench := p.client("pgbench", "--client", "8", "--jobs", "2", "--time", "1000", "--no-vacuum", "postgres")
	bench.Stdout, bench.Stderr = &said, &said
	if err := bench.Start(); err != nil {
		t.Fatal(err)
	}
	p.transactions(100)
	for _, to := range []string{"host2", "host3"} {
		p.Move("postgres", to, "--files", "shared", "--max-downtime", "5s") // each of its processes costs some milliseconds
		p.transactions(p.number("select count(*) from pgbench_history") + 100)
	}
	// The signal by which it learns that its time is over. It completes what it has begun and sums up.
	if err := bench.Signal(syscall.SIGALRM); err != nil {
		t.Fatal(err)
	}
	if err := bench.Wait(); err != nil {
		t.Fatalf("pgbench: %v\n%s", err, said.String())
	}
	p.consistent(said.String())
}

var processed = regexp.MustCompile(`(?s)number of transactions actually processed: (\d+)\nnumber of failed transactions: (\d+) `)

// consistent checks that the database holds what pgbench was told is committed, and that the sums are those of TPC-B.
func (p *postgres) consistent(summary string) {
	p.Helper()
	m := processed.FindStringSubmatch(summary)
	if m == nil || m[2] != "0" || strings.Contains(summary, "rror") || strings.Contains(summary, "aborted") {
		p.Fatalf("pgbench says:\n%s", summary)
	}
	if got := p.query("select count(*) from pgbench_history"); got != m[1] {
		p.Errorf("pgbench had %s transactions committed, the database has %s", m[1], got)
	}
	want := p.query("select sum(delta) from pgbench_history")
	for _, sum := range []string{"sum(abalance) from pgbench_accounts", "sum(bbalance) from pgbench_branches", "sum(tbalance) from pgbench_tellers"} {
		if got := p.query("select " + sum); got != want {
			p.Errorf("%s is %s, want %s as in the history", sum, got, want)
		}
	}
	for table, column := range map[string]string{"accounts": "a", "tellers": "t"} {
		wrong := p.query(fmt.Sprintf("select count(*) from (select x.%[1]sid from pgbench_%[2]s x left join pgbench_history h using (%[1]sid) "+
			"group by x.%[1]sid, x.%[1]sbalance having x.%[1]sbalance <> coalesce(sum(h.delta), 0)) wrong", column, table))
		if wrong != "0" {
			p.Errorf("%s of the %s have another balance than the history gives them", wrong, table)
		}
	}
}

// transactions waits until so many are committed.
func (p *postgres) transactions(n int64) {
	p.Helper()
	for p.number("select count(*) from pgbench_history") < n {
		if p.Ctx.Err() != nil {
			p.Fatalf("there are not %d transactions", n)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
