/* Secret memory (memfd_secret(2)): several mappings of it, a child that shares it, another piece that nobody has mapped or sized. */
#include "workload.h"

int main(void)
{
	int fd = syscall(447 /* memfd_secret */, 0), empty = syscall(447, O_CLOEXEC), go[2], st;
	if (fd < 0) { /* the kernel has none, or secretmem.enable=0 */
		ready();
		pass();
	}
	CHECK(empty >= 0 && !pipe(go) && !ftruncate(fd, 5 * 4096), "ftruncate");
	char *all = mmap(NULL, 5 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *third = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 2 * 4096);
	CHECK(all != MAP_FAILED && third != MAP_FAILED, "mmap");
	strcpy(all, "first");
	strcpy(all + 2 * 4096 + 7, "third");
	pid_t pid = fork();
	if (!pid) {
		char b;
		if (read(go[0], &b, 1) != 1 || strcmp(all, "told") || strcmp(third + 7, "third"))
			_exit(2);
		strcpy(all + 4096, "from the child");
		_exit(1);
	}
	ready();
	CHECK(!strcmp(all, "first") && !strcmp(third + 7, "third") && !all[4 * 4096], "content");
	strcpy(all, "told");
	CHECK(write(go[1], "x", 1) == 1 && waitpid(pid, &st, 0) == pid && WIFEXITED(st) && WEXITSTATUS(st) == 1, "child: status %x", st);
	CHECK(!strcmp(all + 4096, "from the child"), "what the child wrote");
	char *again = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 4096);
	CHECK(again != MAP_FAILED && !strcmp(again, "from the child"), "another mapping of the descriptor");
	struct stat s;
	CHECK(!fstat(fd, &s) && s.st_size == 5 * 4096 && !fstat(empty, &s) && s.st_size == 0, "size");
	CHECK(fcntl(empty, F_GETFD) == FD_CLOEXEC && !ftruncate(empty, 4096) && mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, empty, 0) != MAP_FAILED, "the empty one");
	/* nobody reads it from outside */
	int p[2];
	char b[8];
	CHECK(!pipe(p) && pread(open("/proc/self/mem", O_RDONLY), b, 8, (off_t)all) < 0, "it can be read from outside");
	pass();
}
