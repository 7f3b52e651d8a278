//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"migrate/engine/kernel"
)

func TestCheckCoversAllFeatures(t *testing.T) {
	for _, f := range kernel.All() {
		if worksWithout[f] == "" {
			t.Errorf("check does not say what works without %s", f)
		}
	}
}

func TestCheckPrintsJSON(t *testing.T) {
	cmd := newCheckCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetArgs([]string{"-o", "json"})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	var list []feature
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	if len(list) != len(kernel.All()) {
		t.Errorf("%d features, want %d", len(list), len(kernel.All()))
	}
	for _, f := range list {
		if f.Have != (f.Reason == "") {
			t.Errorf("%+v: a feature is missing for a reason, and only then", f)
		}
	}
}

func TestCheckExplainsWhatIsMissing(t *testing.T) {
	var out bytes.Buffer
	row := feature{Name: "time travel", Since: "9.9", NeededFor: "yesterday", WorksWithout: "tomorrow", Reason: errors.ErrUnsupported.Error()}
	if err := printFeatures(&out, []feature{row}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"no   time travel, for yesterday", "since 9.9", "unsupported operation", "works without it: tomorrow"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}
