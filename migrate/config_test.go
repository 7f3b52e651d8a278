package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// TestPrecedence: a variable goes before the file, and what neither says stays as it was.
func TestPrecedence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte("name: a\nbridge: br0\nports:\n  raft: 1\n  pages: 2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := agentFile{DataDir: "/data"}
	if err := readAgentFile(path, &c); err != nil {
		t.Fatal(err)
	}
	given := map[string]string{"MIGRATE_BRIDGE": "br1", "MIGRATE_PORTS_RAFT": "7", "MIGRATE_SERVERS": "a=10.0.0.1,b=10.0.0.2", "MIGRATE_SERVER": "true", "MIGRATE_NAME": ""}
	lookup := func(name string) (string, bool) { v, ok := given[name]; return v, ok }
	if err := setFromEnvironment(&c, lookup); err != nil {
		t.Fatal(err)
	}
	want := agentFile{Name: "a", Server: true, Bridge: "br1", Ports: agentPorts{Raft: 7, Pages: 2}, Servers: []string{"a=10.0.0.1", "b=10.0.0.2"}, DataDir: "/data"}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v, want %+v", c, want)
	}
	for name, text := range map[string]string{"MIGRATE_PORTS_JOIN": "many", "MIGRATE_SERVER": "perhaps"} {
		given = map[string]string{name: text}
		if err := setFromEnvironment(&c, lookup); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s=%s: %v", name, text, err)
		}
	}
	if err := os.WriteFile(path, []byte("name: a\nbrigde: br0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := readAgentFile(path, &c); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "line 2") || !strings.Contains(err.Error(), "brigde") {
		t.Errorf("a key that does not exist: %v", err)
	}
}

// TestConfigurationIsDocumented: docs/configuration.md has every key.
func TestConfigurationIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	var look func(r reflect.Type, prefix string)
	look = func(r reflect.Type, prefix string) {
		for i := range r.NumField() {
			key, _, _ := strings.Cut(r.Field(i).Tag.Get("yaml"), ",")
			if r.Field(i).Type.Kind() == reflect.Struct {
				look(r.Field(i).Type, prefix+key+".")
			} else if !strings.Contains(string(text), "| `"+prefix+key+"` |") {
				t.Errorf("docs/configuration.md says nothing of %s%s", prefix, key)
			}
		}
	}
	look(reflect.TypeFor[agentFile](), "")
}
