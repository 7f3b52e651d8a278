/* Regular files with offset and flags, a shared description after dup and fork, O_APPEND, device files, a directory. */
#include "workload.h"

int main(void)
{
	int f = open("data", O_RDWR | O_CREAT | O_TRUNC, 0640), d = dup(f);
	CHECK(f >= 0 && d >= 0 && write(f, "0123456789", 10) == 10 && lseek(f, 4, SEEK_SET) == 4, "data");
	int a = open("log", O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	CHECK(write(a, "one", 3) == 3, "log");
	int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY), high = fcntl(null, F_DUPFD, 900);
	int dir = open(".", O_RDONLY | O_DIRECTORY);
	CHECK(null >= 0 && zero >= 0 && high >= 900 && dir >= 0, "devices");
	CHECK(!mkdir("sub", 0700) || errno == EEXIST, "mkdir");
	CHECK(!chdir("sub"), "chdir");
	umask(027);
	CHECK(!chdir(".."), "chdir");
	ready();
	char b[16] = "";
	struct stat st;
	CHECK(umask(0) == 027, "umask");
	CHECK(lseek(f, 0, SEEK_CUR) == 4 && read(d, b, 3) == 3 && !memcmp(b, "456", 3), "offset");
	CHECK(lseek(f, 0, SEEK_CUR) == 7, "dup no longer shares the offset");
	CHECK(lseek(a, 0, SEEK_SET) == 0 && write(a, "two", 3) == 3, "append");
	int r = open("log", O_RDONLY);
	CHECK(read(r, b, 10) == 6 && !memcmp(b, "onetwo", 6), "the log says %s", b);
	CHECK(fcntl(a, F_GETFD) == FD_CLOEXEC && fcntl(f, F_GETFD) == 0, "FD_CLOEXEC");
	CHECK((fcntl(a, F_GETFL) & (O_APPEND | O_ACCMODE)) == (O_APPEND | O_WRONLY), "flags");
	CHECK(write(high, "x", 1) == 1 && read(zero, b, 4) == 4 && !b[0] && !b[3], "devices after");
	CHECK(!fstat(dir, &st) && S_ISDIR(st.st_mode), "directory");
	CHECK(!fstatat(dir, "data", &st, 0) && st.st_size == 10, "data in the directory");
	pass();
}
