// A process that waits in vfork(2), and in clone(2) with CLONE_VFORK alone, which shares no memory with the child, if there is a
// file "copy" in its directory. The child says that it is ready and ends when it is killed.
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
	unsigned long flags = CLONE_VFORK | SIGCHLD;
	if (access("copy", F_OK) == 0) {
		if (syscall(SYS_clone, flags, 0, 0, 0, 0) != 0)
			return 0;
	} else if (vfork() != 0) {
		return 0;
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(open("ready.new", O_CREAT | O_WRONLY, 0666));
	syscall(SYS_renameat2, AT_FDCWD, "ready.new", AT_FDCWD, "ready", 0);
	for (;;)
		pause();
}
