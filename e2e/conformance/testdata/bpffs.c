/* A program with a directory in a file system of BPF objects of its own, which is not carried. */
#include "../../workloads/c/workload.h"
#include <sched.h>
#include <sys/mount.h>

int main(void)
{
	CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "unshare");
	CHECK(!mkdir("objects", 0700) && !mount("mine", "objects", "bpf", 0, "mode=0700") && !mkdir("objects/pinned", 0700), "bpffs");
	ready();
	CHECK(!access("objects/pinned", F_OK), "it has gone");
	pass();
}
