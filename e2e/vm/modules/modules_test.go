package modules

import (
	"bytes"
	"slices"
	"testing"
)

func table() Table {
	bridge := parse([]byte("license=GPL\x00alias=rtnl-link-bridge\x00depends=stp,llc\x00name=bridge\x00"))
	return Table{
		"bridge": bridge, "stp": {Needs: []string{"llc"}}, "llc": parse([]byte("depends=\x00")),
		"nf_tables": parse([]byte("alias=nfnetlink-subsys-10\x00depends=nf-netlink\x00")),
		"act_x":     {Aliases: []string{"net_act_*"}},
	}
}

func TestOrder(t *testing.T) {
	got, err := table().Order("bridge")
	if want := []string{"llc", "stp", "bridge"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	if _, err := table().Order("nf_tables"); err == nil {
		t.Error("a module that is missing was not missed")
	}
}

func TestFind(t *testing.T) {
	for alias, want := range map[string][]string{
		"bridge": {"bridge"}, "rtnl-link-bridge": {"bridge"}, "nfnetlink_subsys_10": {"nf_tables"}, "net-act-mirred": {"act_x"}, "none": nil,
	} {
		if got := table().Find(alias); !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", alias, got, want)
		}
	}
}

func TestSelect(t *testing.T) {
	all := table()
	for name, file := range map[string]string{"bridge": "net/bridge/bridge.ko", "stp": "net/802/stp.ko", "llc": "net/llc/llc.ko", "nf_tables": "n/nf_tables.ko"} {
		all[name].File = file
	}
	for _, p := range []string{"net/bridge", "net/bridge/bridge"} {
		if got, err := all.Select(p); err != nil || len(got) != 3 {
			t.Errorf("%s: got %v, %v", p, got, err)
		}
	}
	if _, err := all.Select("net/br"); err == nil {
		t.Error("a part of a name was taken for a directory")
	}
}

func TestWriteAndLoad(t *testing.T) {
	var b bytes.Buffer
	if err := table().Write(&b); err != nil {
		t.Fatal(err)
	}
	got, err := Load(&b)
	if err != nil || len(got) != len(table()) || got["stp"].Needs[0] != "llc" {
		t.Errorf("got %v, %v", got, err)
	}
}
