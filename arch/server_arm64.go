package arch

// ServerSize returns 0: there is no server for this processor yet, so a living program cannot be borrowed.
func ServerSize() int { return 0 }

// NewServer returns ErrUnsupported.
func NewServer(uint64, ServerParams) ([]byte, Regs, error) { return nil, Regs{}, ErrUnsupported }

// FindServers finds none.
func FindServers([]byte) []FoundServer { return nil }
