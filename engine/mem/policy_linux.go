package mem

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"

	"migrate/engine/images"
	"migrate/engine/images/imagespb"
	"migrate/engine/remote"
)

// The NUMA policy of a mapping (mbind(2)) stands in numa_maps, which walks the page tables of all mappings to print it,
// some 25 ms for a GiB: too dear for a stopped program. So the program asks itself, by get_mempolicy(2), which looks at no page; the questions go
// with those that its first thread answers anyway. A mapping has one policy, since mbind splits it where it must; that of
// shared memory belongs to the memory, and the mapping that was split may be another process's.
const (
	policyOfAddress = 2                // MPOL_F_ADDR
	policyMask      = 128              // bytes of a mask of memory nodes
	policyNodes     = policyMask*8 + 1 // counts one more than there are (mbind(2), "bugs")
	maxPolicyAsks   = 8192             // of one batch: the thread is borrowed anew for each, which takes longer than a hundred questions
)

// A PolicyCuts knows where policies of shared memory may change: where a mapping of any process begins.
type PolicyCuts map[uint64][]uint64 // offsets by the object or file, ascending after Sort

func policyObject(v *vma.VmaEntry) (key uint64, shared bool) {
	switch {
	case v.GetStatus()&images.VMAAnonShared != 0:
		return v.GetShmid(), true
	case v.GetStatus()&images.VMAFileShared != 0:
		return v.GetShmid() | 1<<63, true
	}
	return 0, false
}

// Add takes the mappings of a process.
func (c PolicyCuts) Add(vmas []*vma.VmaEntry) {
	for _, v := range vmas {
		if key, ok := policyObject(v); ok && !kernelOwned(v) {
			c[key] = append(c[key], v.GetPgoff())
		}
	}
}

// Sort makes the cuts ready for use.
func (c PolicyCuts) Sort() {
	for key, at := range c {
		slices.Sort(at)
		c[key] = slices.Compact(at)
	}
}

// parts lists what of the mappings of a process may have a policy of its own.
func (c PolicyCuts) parts(vmas []*vma.VmaEntry) []Range {
	out := make([]Range, 0, len(vmas))
	for _, v := range vmas {
		if kernelOwned(v) {
			continue
		}
		r := rangeOf(v)
		if key, ok := policyObject(v); ok {
			at := c[key]
			from, _ := slices.BinarySearch(at, v.GetPgoff()+1)
			for _, off := range at[from:] {
				if off-v.GetPgoff() >= r.End-v.GetStart() {
					break
				}
				cut := v.GetStart() + off - v.GetPgoff()
				out = append(out, Range{r.Start, cut})
				r.Start = cut
			}
		}
		out = append(out, r)
	}
	return out
}

// PolicyQuestions asks a stopped process for the policies of its mappings.
type PolicyQuestions struct {
	parts []Range
	asked []*policyAnswer
}

type policyAnswer struct {
	Range
	result *remote.Result
	mode   *remote.Data
}

// NewPolicyQuestions prepares the questions about the mappings of a process.
func NewPolicyQuestions(vmas []*vma.VmaEntry, cuts PolicyCuts) *PolicyQuestions {
	return &PolicyQuestions{parts: cuts.parts(vmas)}
}

// Ask adds as many questions as fit to a batch.
func (q *PolicyQuestions) Ask(b *remote.Batch) {
	n := min(len(q.parts), maxPolicyAsks)
	for _, r := range q.parts[:n] {
		a := &policyAnswer{Range: r, mode: b.Buffer(8)}
		a.result = b.Try(unix.SYS_GET_MEMPOLICY, a.mode, 0, 0, r.Start, policyOfAddress)
		q.asked = append(q.asked, a)
	}
	q.parts = q.parts[n:]
}

// Answers asks what did not fit, and for the nodes of the policies that are there.
func (q *PolicyQuestions) Answers(ctx context.Context, c remote.Caller) ([]*imagespb.MemoryPolicy, error) {
	for len(q.parts) > 0 {
		b := &remote.Batch{}
		q.Ask(b)
		if err := c.Run(ctx, b); err != nil {
			return nil, err
		}
	}
	b := &remote.Batch{}
	var out []*imagespb.MemoryPolicy
	var masks []*remote.Data
	for _, a := range q.asked {
		// An error says that the kernel has no such policies. Mode 0 is the usual one.
		mode := binary.LittleEndian.Uint32(a.mode.Bytes())
		if a.result.Err() != nil || mode == 0 {
			continue
		}
		nodes := b.Buffer(policyMask)
		b.Call(unix.SYS_GET_MEMPOLICY, b.Buffer(8), nodes, policyNodes-1, a.Start, policyOfAddress)
		masks = append(masks, nodes)
		out = append(out, &imagespb.MemoryPolicy{Start: a.Start, End: a.End, Mode: mode})
		if b.Len() == maxPolicyAsks {
			if err := takeMasks(ctx, c, b, masks, out); err != nil {
				return nil, err
			}
			b, masks = &remote.Batch{}, nil
		}
	}
	if len(masks) > 0 {
		if err := takeMasks(ctx, c, b, masks, out); err != nil {
			return nil, err
		}
	}
	return joinPolicies(out), nil
}

// takeMasks runs the questions for the nodes of the last policies.
func takeMasks(ctx context.Context, c remote.Caller, b *remote.Batch, masks []*remote.Data, out []*imagespb.MemoryPolicy) error {
	if err := c.Run(ctx, b); err != nil {
		return fmt.Errorf("memory policies: %w", err)
	}
	for i, p := range out[len(out)-len(masks):] {
		p.Nodes = bytes.Clone(masks[i].Bytes())
	}
	return nil
}

// joinPolicies makes one of those that go on where the one before ends.
func joinPolicies(list []*imagespb.MemoryPolicy) (out []*imagespb.MemoryPolicy) {
	for _, p := range list {
		if n := len(out) - 1; n >= 0 && out[n].End == p.Start && out[n].Mode == p.Mode && bytes.Equal(out[n].Nodes, p.Nodes) {
			out[n].End = p.End
			continue
		}
		out = append(out, p)
	}
	return out
}

// policies gives memory its NUMA policies. Pages that are there stay where they are, as mbind(2) leaves them.
func (m *marker) policies(img *images.Process) error {
	for _, p := range img.Extra.GetMemoryPolicies() {
		what := fmt.Sprintf("NUMA policy 0x%x of the memory at 0x%x (mbind)", p.GetMode(), p.GetStart())
		nodes := m.batch.Bytes(p.GetNodes())
		if err := m.call(nil, what, unix.SYS_MBIND, p.GetStart(), p.GetEnd()-p.GetStart(), p.GetMode(), nodes, len(p.GetNodes())*8+1, 0); err != nil {
			return err
		}
	}
	return nil
}
