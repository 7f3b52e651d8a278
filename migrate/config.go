package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// agentFile is the agent's configuration file. docs/configuration.md says what each key means.
type agentFile struct {
	Name            string     `yaml:"name"`
	Server          bool       `yaml:"server"`
	Bind            string     `yaml:"bind"`
	Ports           agentPorts `yaml:"ports,omitempty"`
	Servers         []string   `yaml:"servers"`
	BootstrapExpect int        `yaml:"bootstrap_expect,omitempty"`
	Joined          bool       `yaml:"joined,omitempty"`
	TLSDir          string     `yaml:"tls_dir"`
	CADir           string     `yaml:"ca_dir,omitempty"`
	DataDir         string     `yaml:"data_dir"`
	Socket          string     `yaml:"socket,omitempty"`
	Bridge          string     `yaml:"bridge,omitempty"`
	Metrics         string     `yaml:"metrics,omitempty"`
}

type agentPorts struct {
	Control int `yaml:"control,omitempty"`
	Pages   int `yaml:"pages,omitempty"`
	Raft    int `yaml:"raft,omitempty"`
	Gossip  int `yaml:"gossip,omitempty"`
	Join    int `yaml:"join,omitempty"`
}

// defaultAgentFile is where the configuration is looked for.
const defaultAgentFile = "/etc/migrate/agent.yaml"

func readAgentFile(path string, c *agentFile) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("the agent's configuration: %w; make a cluster with `migrate init`, join one with `migrate join`, or try `migrate agent --dev`", err)
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// writeAgentFile writes a configuration where there is none, and flushes it to disk.
func writeAgentFile(path string, c agentFile) (err error) {
	var b bytes.Buffer
	b.WriteString("# The configuration of migrate's agent; docs/configuration.md says what each key means.\n")
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(c), e.Close()); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".agent-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(b.Bytes())
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Link(f.Name(), path) // which fails where there is one (link(2))
}
