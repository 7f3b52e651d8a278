/* A program that runs from a memfd, and one that may not be executed. */
#include "workload.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

int main(int argc, char **argv)
{
	(void)argc;
	if (!getenv("IN_MEMFD")) {
		int self = open("/proc/self/exe", O_RDONLY), m = syscall(SYS_memfd_create, "program", MFD_CLOEXEC);
		char buf[65536], path[64];
		for (ssize_t n; (n = read(self, buf, sizeof buf)) > 0;)
			CHECK(write(m, buf, n) == n, "write");
		snprintf(path, sizeof path, "/proc/self/fd/%d", m);
		int ro = open(path, O_RDONLY | O_CLOEXEC);
		close(m);
		CHECK(ro >= 0 && !setenv("IN_MEMFD", "1", 1), "reopen");
		syscall(SYS_execveat, ro, "", argv, environ, AT_EMPTY_PATH);
		fail("execveat");
	}
	int no = syscall(SYS_memfd_create, "data", MFD_NOEXEC_SEAL);
	ready();
	char link[256];
	ssize_t n = readlink("/proc/self/exe", link, sizeof link - 1);
	CHECK(n > 0, "readlink");
	link[n] = 0;
	CHECK(!strcmp(link, "/memfd:program (deleted)"), "the program is %s", link);
	if (no >= 0) {
		struct stat st;
		CHECK(!fstat(no, &st) && !(st.st_mode & 0111) && fcntl(no, F_GET_SEALS) == 0x20, "MFD_NOEXEC_SEAL: mode %o, seals 0x%x", st.st_mode, fcntl(no, F_GET_SEALS));
		CHECK(fchmod(no, 0700) < 0, "fchmod");
	}
	pass();
}
