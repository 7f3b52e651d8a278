/* Paths: open flags, O_PATH of all kinds, offsets beyond 4 GiB, one file opened twice, renamed over and below, changed modes,
 * links that lead elsewhere by now, files that the process could not open again, large numbers. */
#include "workload.h"
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>

static int file(const char *name, int flags, const char *text)
{
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd), "%s", name);
	fd = open(name, flags);
	CHECK(fd >= 0, "%s, flags %o", name, flags);
	return fd;
}
static const char *text_of(int fd)
{
	static char b[64];
	ssize_t n = pread(fd, b, sizeof b - 1, 0);
	CHECK(n >= 0, "pread");
	b[n] = 0;
	return b;
}

int main(void)
{
	int n = 0, fds[64], flags[64];
	const int all[] = {O_RDONLY, O_WRONLY | O_APPEND, O_RDWR | O_SYNC, O_RDWR | O_DSYNC, O_RDONLY | O_NOATIME, O_RDWR | O_NONBLOCK, O_RDONLY | O_NOFOLLOW,
			   O_RDWR | O_DIRECT, O_WRONLY | O_CLOEXEC, O_PATH, O_PATH | O_NOFOLLOW, 3 /* for ioctl only */};
	file("f", O_RDONLY, "contents");
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++)
		if ((fds[n] = open("f", all[i])) >= 0)
			n++;
	CHECK(!mkdir("dir", 0755) && !symlink("f", "link") && !mkfifo("fifo", 0644), "names");
	CHECK((fds[n] = open("dir", O_RDONLY | O_DIRECTORY)) >= 0 && ++n, "dir");
	CHECK((fds[n] = open("dir", O_PATH | O_DIRECTORY)) >= 0 && ++n, "dir, O_PATH");
	CHECK((fds[n] = open("link", O_PATH | O_NOFOLLOW)) >= 0 && ++n, "link, O_PATH");
	CHECK((fds[n] = open("fifo", O_PATH)) >= 0 && ++n, "fifo, O_PATH");
	int s = socket(AF_UNIX, SOCK_STREAM, 0);
	struct sockaddr_un sun = {.sun_family = AF_UNIX, .sun_path = "sock"};
	CHECK(!bind(s, (void *)&sun, sizeof sun) && !listen(s, 1), "socket");
	CHECK((fds[n] = open("sock", O_PATH)) >= 0 && ++n, "socket, O_PATH");
	CHECK((fds[n] = open("/dev/null", O_PATH)) >= 0 && ++n, "device, O_PATH");
	struct stat st[64], now;
	for (int i = 0; i < n; i++) {
		flags[i] = fcntl(fds[i], F_GETFL);
		CHECK(!fstat(fds[i], &st[i]), "fstat");
	}
	int big = file("big", O_RDWR, "");
	CHECK(lseek(big, (5LL << 30) + 3, SEEK_SET) == (5LL << 30) + 3 && write(big, "z", 1) == 1, "big");
	int one = file("two", O_RDWR, "0123456789"), two = open("two", O_RDWR), dupped = dup(one);
	CHECK(lseek(one, 2, SEEK_SET) == 2 && lseek(two, 5, SEEK_SET) == 5, "two");
	int renamed = file("before", O_RDWR, "renamed");
	CHECK(!rename("before", "after"), "rename");
	int via = file("target1", O_RDWR, "target 1");
	close(via);
	CHECK(!symlink("target1", "via"), "symlink");
	via = open("via", O_RDWR);
	CHECK(!unlink("via"), "unlink");
	close(file("target2", O_RDWR, "target 2"));
	CHECK(!symlink("target2", "via"), "symlink");
	int noread = file("noread", O_RDWR, "no read"), parent;
	CHECK(!chmod("noread", 0) && !chown("noread", 4242, 4242), "chmod");
	CHECK(!mkdir("closed", 0755), "mkdir");
	parent = file("closed/inner", O_RDONLY, "inner");
	CHECK(!chmod("closed", 0) && !chown("closed", 4242, 4242), "closed");
	int moved = file("dir/moved", O_RDWR, "moved");
	CHECK(!rename("dir", "dir2"), "rename directory");
	int high = fcntl(one, F_DUPFD, 1000);
	CHECK(high >= 1000, "F_DUPFD");
	ready();
	for (int i = 0; i < n; i++) {
		CHECK(fcntl(fds[i], F_GETFL) == flags[i], "descriptor %d (%d): flags are %o, were %o", fds[i], i, fcntl(fds[i], F_GETFL), flags[i]);
		if (S_ISSOCK(st[i].st_mode)) /* bound anew */
			CHECK(!stat("sock", &st[i]), "sock");
		CHECK(!fstat(fds[i], &now) && now.st_ino == st[i].st_ino && now.st_mode == st[i].st_mode, "descriptor %d is another file", fds[i]);
	}
	char b[8];
	CHECK(lseek(big, 0, SEEK_CUR) == (5LL << 30) + 4 && pread(big, b, 1, (5LL << 30) + 3) == 1 && *b == 'z', "offset of the big file");
	CHECK(lseek(one, 0, SEEK_CUR) == 2 && lseek(dupped, 1, SEEK_CUR) == 3 && lseek(one, 0, SEEK_CUR) == 3 && lseek(two, 0, SEEK_CUR) == 5, "offsets");
	CHECK(lseek(high, 0, SEEK_CUR) == 3, "high number");
	CHECK(!strcmp(text_of(renamed), "renamed") && !strcmp(text_of(via), "target 1") && !strcmp(text_of(moved), "moved"), "contents");
	CHECK(!strcmp(text_of(noread), "no read") && !strcmp(text_of(parent), "inner"), "closed files");
	pass();
}
