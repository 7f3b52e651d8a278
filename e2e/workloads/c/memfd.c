/* Memfds: names, offsets, a read-only description, seals, owner and mode, sparse, mapped private and shared, with a child, mapped and
 * closed. */
#include "workload.h"

static int memfd(const char *name, unsigned flags) { return syscall(SYS_memfd_create, name, flags); }

static int reopen(int fd, int flags)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return open(path, flags);
}

static int maps_have(const char *text)
{
	char line[1024];
	int found = 0;
	FILE *f = fopen("/proc/self/maps", "r");
	while (f && fgets(line, sizeof line, f))
		found |= !!strstr(line, text);
	if (f)
		fclose(f);
	return found;
}

int main(void)
{
	char buf[64] = "", link[256], path[64];
	int a = memfd("one name", 0), ro, s = memfd("sealed", MFD_ALLOW_SEALING), f = memfd("future", MFD_ALLOW_SEALING);
	CHECK(a >= 0 && s >= 0 && f >= 0 && write(a, "0123456789", 10) == 10 && lseek(a, 3, SEEK_SET) == 3, "memfd");
	CHECK((ro = reopen(a, O_RDONLY)) >= 0 && lseek(ro, 7, SEEK_SET) == 7, "reopen");
	CHECK(!fchown(a, 3, 4) && !fchmod(a, 0640) && !ftruncate(a, 1 << 20), "owner");
	CHECK(write(s, "sealed", 6) == 6 && !fcntl(s, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), "seal");
	char *sp = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, s, 0), *sr = mmap(NULL, 4096, PROT_READ, MAP_SHARED, s, 0);
	CHECK(sp != MAP_FAILED && sr != MAP_FAILED, "mapping a sealed memfd");
	sp[6] = '!';
	CHECK(!ftruncate(f, 8192), "ftruncate");
	char *fp = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0);
	CHECK(fp != MAP_FAILED && !fcntl(f, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), "F_SEAL_FUTURE_WRITE");
	strcpy(fp, "future");
	char *ap = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, a, 0);
	char *ap2 = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, a, 8192);
	CHECK(ap != MAP_FAILED && ap2 != MAP_FAILED, "mmap");
	strcpy(ap + 8192, "shared");
	strcpy(ap2 + 100, "private");
	int c = memfd("closed", 0), e = memfd("", MFD_CLOEXEC), big = memfd("big", 0);
	CHECK(!ftruncate(c, 1 << 16) && !ftruncate(big, (off_t)1 << 32) && pwrite(big, "end", 3, ((off_t)1 << 32) - 3) == 3, "big");
	char *cp = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED, c, 0);
	CHECK(cp != MAP_FAILED && !close(c), "closed");
	strcpy(cp + 5000, "closed");
	pid_t child = fork();
	if (!child) {
		while (cp[0] != 'g')
			usleep(500);
		_exit(strcmp(ap + 8192, "shareD") ? 9 : 0);
	}
	ready();
	struct stat st;
	CHECK(lseek(a, 0, SEEK_CUR) == 3 && read(ro, buf, 3) == 3 && !memcmp(buf, "789", 3) && write(ro, "x", 1) < 0, "offsets");
	CHECK(!fstat(a, &st) && st.st_uid == 3 && st.st_gid == 4 && (st.st_mode & 07777) == 0640 && st.st_size == 1 << 20, "stat: mode %o", st.st_mode);
	CHECK(fcntl(s, F_GET_SEALS) == (F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL), "seals are 0x%x", fcntl(s, F_GET_SEALS));
	CHECK(fcntl(f, F_GET_SEALS) == F_SEAL_FUTURE_WRITE && fcntl(a, F_GET_SEALS) == F_SEAL_SEAL, "seals");
	CHECK(pwrite(s, "x", 1, 0) < 0 && errno == EPERM && !memcmp(sp, "sealed!", 7) && !memcmp(sr, "sealed\0", 7), "sealed");
	fp[0] = 'F';
	CHECK(pread(f, buf, 6, 0) == 6 && !memcmp(buf, "Future", 6) && write(f, "x", 1) < 0, "future");
	CHECK(!strcmp(ap + 8192, "shared") && !strcmp(ap2 + 100, "private") && !strcmp(ap2, "shared"), "mappings");
	ap[8192 + 5] = 'D';
	CHECK(pread(a, buf, 6, 8192) == 6 && !memcmp(buf, "shareD", 6), "the mapping is not of the descriptor");
	CHECK(!strcmp(cp + 5000, "closed"), "closed");
	cp[0] = 'g';
	int wst;
	CHECK(waitpid(child, &wst, 0) == child && !wst, "child %x", wst);
	CHECK(fcntl(e, F_GETFD) == FD_CLOEXEC && !fstat(e, &st) && !st.st_size, "empty");
	CHECK(!fstat(big, &st) && st.st_size == (off_t)1 << 32 && st.st_blocks < 100 && pread(big, buf, 3, st.st_size - 3) == 3 && !memcmp(buf, "end", 3), "big");
	snprintf(path, sizeof path, "/proc/self/fd/%d", a);
	ssize_t n = readlink(path, link, sizeof link - 1);
	link[n < 0 ? 0 : n] = 0;
	CHECK(!strcmp(link, "/memfd:one name (deleted)"), "the name is %s", link);
	CHECK(maps_have("/memfd:one name (deleted)") && maps_have("/memfd:closed (deleted)"), "names in maps");
	pass();
}
