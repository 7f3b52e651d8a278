// Package peek reads the kernel's own memory, by a BPF program of a few instructions that is run on request
// (BPF_PROG_TYPE_SYSCALL, Linux 5.19; CAP_BPF and CAP_PERFMON; CONFIG_DEBUG_INFO_BTF). It serves state that no system call
// shows without taking it away, such as what waits in a terminal. Where fields stand is taken from the kernel's type
// information (BTF), so no layout is compiled in; a field that this kernel lacks is an error by name.
//
// A Kernel may be used by several goroutines and takes no locks. Reading changes nothing, and a bad address is an error.
package peek
