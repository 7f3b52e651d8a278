package arch

// ServerSize returns 0: there is no server for this processor yet, so a living program cannot be borrowed.
func ServerSize() int { return 0 }

// NewServer returns ErrUnsupported.
func NewServer(uint64, ServerParams) ([]byte, Regs, error) { return nil, Regs{}, ErrUnsupported }

// FindServers finds none.
func FindServers([]byte) []FoundServer { return nil }

// ServerPhase returns PhaseOutside.
func ServerPhase(uint64, Regs) Phase { return PhaseOutside }

// ServerProgram returns r.
func ServerProgram(_ []byte, _ uint64, r Regs) (Regs, uint64) { return r, 0 }

// ServerMemory returns 0.
func ServerMemory(Regs) uint64 { return 0 }
