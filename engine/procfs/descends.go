package procfs

// maxChases bounds how often the ancestors of a process are followed anew because one of them has ended.
const maxChases = 100

// Descends tells whether an ancestor of a process satisfies of. A process that has ended descends from nothing.
func (p FS) Descends(pid int, of func(ancestor int) bool) bool {
	for range maxChases {
		at := pid
		for at > 1 {
			st, err := p.Stat(at)
			if err != nil && at == pid {
				return false
			}
			if err != nil {
				break // an ancestor that has ended: its children have another parent now
			}
			at = st.PPID
			if at > 0 && of(at) {
				return true
			}
		}
		if at <= 1 {
			return false
		}
	}
	return false
}
