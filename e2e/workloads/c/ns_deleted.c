/* Mounts of what was deleted: files and a directory of the host's and of a tmpfs of the program's own, one mounted twice, one whose name is taken again. */
#include "workload.h"
#include <sched.h>
#include <sys/mount.h>

static void put(const char *name, const char *text)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0640);
	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd), "%s", name);
}

static void content(const char *name, const char *want)
{
	char buf[64] = "";
	int fd = open(name, O_RDONLY);
	CHECK(fd >= 0 && read(fd, buf, sizeof buf - 1) >= 0 && !close(fd) && !strcmp(buf, want), "%s: %s instead of %s", name, buf, want);
}

static void bind(const char *from, const char *to, int dir)
{
	if (dir)
		CHECK(!mkdir(to, 0755), "%s", to);
	else
		put(to, "");
	CHECK(!mount(from, to, NULL, MS_BIND, NULL), "bind %s", from);
}

int main(void)
{
	CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "unshare");
	CHECK(!mkdir("mem", 0755) && !mkdir("disk", 0755) && !mount("mem", "mem", "tmpfs", 0, "size=1m") && !mkdir("mem/d", 0700), "tmpfs");
	put("disk/file", "on disk"), put("mem/d/file", "in memory"), put("mem/taken", "old");
	CHECK(!mkdir("disk/dir", 0711) && !mkdir("mem/dir", 0711), "mkdir");
	bind("disk/file", "a", 0), bind("mem/d/file", "b", 0), bind("disk/dir", "c", 1), bind("mem/dir", "e", 1), bind("mem/taken", "f", 0), bind("a", "g", 0);
	CHECK(!unlink("disk/file") && !unlink("mem/d/file") && !rmdir("disk/dir") && !rmdir("mem/dir") && !unlink("mem/taken"), "delete");
	put("mem/taken", "new");
	struct stat before, after, st;
	CHECK(!stat("mem/d", &before), "stat");
	ready();
	content("a", "on disk"), content("b", "in memory"), content("f", "old"), content("g", "on disk"), content("mem/taken", "new");
	put("a", "changed"), content("g", "changed");
	CHECK(!stat("a", &st) && st.st_nlink == 0 && (st.st_mode & 07777) == 0640, "%d links, mode %o", (int)st.st_nlink, st.st_mode);
	CHECK(!stat("c", &st) && S_ISDIR(st.st_mode) && (st.st_mode & 07777) == 0711 && mkdir("c/x", 0700) < 0 && errno == ENOENT, "c");
	CHECK(!stat("e", &st) && S_ISDIR(st.st_mode) && mkdir("e/x", 0700) < 0 && errno == ENOENT, "e");
	CHECK(access("disk/file", F_OK) < 0 && access("mem/d/file", F_OK) < 0 && access("disk/dir", F_OK) < 0 && access("mem/dir", F_OK) < 0, "they are back");
	CHECK(!stat("mem/d", &after) && after.st_mtim.tv_sec == before.st_mtim.tv_sec && after.st_mtim.tv_nsec == before.st_mtim.tv_nsec, "the directory was changed");
	CHECK(!umount("a") && !umount("b") && !umount("g"), "umount");
	pass();
}
