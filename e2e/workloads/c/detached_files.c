/* Open files on mounts that are gone: a tmpfs that was unmounted lazily, and one that was never mounted anywhere. */
#include "workload.h"
#include <sys/mount.h>

static int put(int dir, const char *name, const char *text)
{
	int fd = openat(dir, name, O_CREAT | O_RDWR, 0640);
	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "%s", name);
	return fd;
}

static void get(int fd, const char *text, int links)
{
	char b[64] = {0};
	struct stat st;
	CHECK(pread(fd, b, sizeof b - 1, 0) == (ssize_t)strlen(text) && !strcmp(b, text), "%s, not %s", b, text);
	CHECK(lseek(fd, 0, SEEK_CUR) == (off_t)strlen(text), "%s: offset", text);
	CHECK(!fstat(fd, &st) && (int)st.st_nlink == links && (st.st_mode & 07777) == 0640, "%s: %d links, mode %o", text, (int)st.st_nlink, st.st_mode);
}

int main(void)
{
	CHECK(!mkdir("lazy", 0755), "mkdir");
	CHECK(!mount("none", "lazy", "tmpfs", 0, NULL), "mount");
	int lazy = put(AT_FDCWD, "lazy/file", "lazy"), again = open("lazy/file", O_RDONLY), other = put(AT_FDCWD, "lazy/other", "other");
	CHECK(!umount2("lazy", MNT_DETACH), "umount2");
	int fs = syscall(SYS_fsopen, "tmpfs", 0);
	CHECK(fs >= 0 && !syscall(SYS_fsconfig, fs, 6 /* FSCONFIG_CMD_CREATE */, NULL, NULL, 0), "fsopen");
	int mnt = syscall(SYS_fsmount, fs, 0, 0), never = put(mnt, "never", "never");
	close(fs);
	close(mnt);
	ready();
	get(lazy, "lazy", 1);
	get(other, "other", 1);
	get(never, "never", 1);
	char c;
	CHECK(pwrite(lazy, "L", 1, 0) == 1 && read(again, &c, 1) == 1 && c == 'L', "not the same file");
	pass();
}
