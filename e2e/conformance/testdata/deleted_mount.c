/* A mount of a file that was deleted, which is open as well: the descriptor and the mount are of one file. */
#include "../../workloads/c/workload.h"
#include <sched.h>
#include <sys/mount.h>

int main(void)
{
	CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "unshare");
	int f = open("file", O_RDWR | O_CREAT, 0600);
	CHECK(f >= 0 && !close(open("a", O_RDWR | O_CREAT, 0600)) && !mount("file", "a", NULL, MS_BIND, NULL) && !unlink("file") && !close(f), "bind");
	int m = open("a", O_RDWR);
	ready();
	struct stat of, at;
	CHECK(m >= 0 && !fstat(m, &of) && !stat("a", &at) && of.st_ino == at.st_ino, "another file");
	pass();
}
