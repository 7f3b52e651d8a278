//go:build linux

package ns

import (
	"fmt"

	"github.com/google/nftables"

	"migrate/engine/images/imagespb"
)

// firewall refuses tables of nftables.
func (d *dumper) firewall(*imagespb.NetNamespace) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	for _, t := range tables {
		d.refuse("firewall", fmt.Sprintf("table %q of nftables", t.Name), "remove it")
	}
	return nil
}
