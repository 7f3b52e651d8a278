/*
 * Overlays in a mount namespace of the program's own: on a tmpfs of its own and on the host's files, of several layers, over the directory
 * that is its own lower layer, one without an upper layer, one on another, a bind of a part of one; open, written and deleted files on them.
 */
#include "workload.h"
#include <sched.h>
#include <sys/mount.h>
#include <sys/statvfs.h>

static char where[1024], path[8][1200], options[8192];

static char *at(int i, const char *name)
{
	snprintf(path[i], sizeof path[i], "%s/%s", where, name);
	return path[i];
}

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

int main(void)
{
	CHECK(getcwd(where, sizeof where), "getcwd");
	CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "unshare");
	CHECK(!mkdir("mem", 0755) && !mkdir("disk", 0755) && !mkdir("self", 0755) && !mkdir("ro", 0755) && !mkdir("second", 0755) && !mkdir("part", 0755), "mkdir");
	CHECK(!mount("layers", "mem", "tmpfs", 0, "size=4m"), "tmpfs");
	const char *dirs[] = {"mem/low1", "mem/low2", "mem/up", "mem/work", "mem/up2", "mem/work2", "mem/up3", "mem/work3", "mem/merged", "disk/low", "disk/up", "disk/work", "disk/merged"};
	for (unsigned i = 0; i < sizeof dirs / sizeof *dirs; i++)
		CHECK(!mkdir(dirs[i], 0755), "%s", dirs[i]);
	put("mem/low1/one", "one"), put("mem/low2/one", "hidden"), put("mem/low2/two", "two"), put("mem/low2/gone", "gone");
	put("disk/low/disk", "disk"), put("self/own", "own");
	CHECK(!mkdir("mem/low2/dir", 0755), "dir");
	put("mem/low2/dir/deep", "deep");

	snprintf(options, sizeof options, "lowerdir=%s:%s,upperdir=%s,workdir=%s", at(0, "mem/low1"), at(1, "mem/low2"), at(2, "mem/up"), at(3, "mem/work"));
	CHECK(!mount("first", "mem/merged", "overlay", MS_NOSUID, options), "overlay: %s", options);
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", at(0, "disk/low"), at(1, "disk/up"), at(2, "disk/work"));
	CHECK(!mount("disk", "disk/merged", "overlay", 0, options), "overlay: %s", options);
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", at(0, "self"), at(1, "mem/up2"), at(2, "mem/work2"));
	CHECK(!mount("self", "self", "overlay", 0, options), "overlay: %s", options);
	snprintf(options, sizeof options, "lowerdir=%s:%s:%s", at(0, "mem/low1"), at(1, "mem/low2"), at(2, "disk/low"));
	CHECK(!mount("ro", "ro", "overlay", 0, options), "overlay: %s", options);
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", at(0, "mem/merged"), at(1, "mem/up3"), at(2, "mem/work3"));
	CHECK(!mount("second", "second", "overlay", 0, options), "overlay: %s", options);
	CHECK(!mount("mem/merged/dir", "part", NULL, MS_BIND, NULL), "bind");

	put("mem/merged/new", "new"), put("mem/merged/two", "TWO"), put("disk/merged/new", "on disk"), put("self/own", "changed");
	CHECK(!unlink("mem/merged/gone") && !rename("mem/merged/one", "mem/merged/uno"), "unlink, rename");
	int low = open("mem/merged/dir/deep", O_RDONLY), up = open("mem/merged/new", O_RDWR), disk = open("disk/merged/disk", O_RDONLY);
	int ro = open("ro/disk", O_RDONLY), deleted = open("mem/merged/tmp", O_RDWR | O_CREAT, 0600);
	CHECK(low >= 0 && up >= 0 && disk >= 0 && ro >= 0 && deleted >= 0, "open");
	CHECK(write(deleted, "deleted", 7) == 7 && !unlink("mem/merged/tmp") && lseek(up, 1, SEEK_SET) == 1, "a deleted file");
	int part = open("part", O_RDONLY | O_DIRECTORY);
	ready();
	CHECK(!faccessat(part, "deep", F_OK, 0) && !close(part), "a directory of the bind");
	char buf[16] = "";
	CHECK(read(low, buf, 4) == 4 && !memcmp(buf, "deep", 4), "low: %s", buf);
	CHECK(read(up, buf, 2) == 2 && !memcmp(buf, "ew", 2), "up: %s", buf);
	CHECK(read(disk, buf, 4) == 4 && !memcmp(buf, "disk", 4) && read(ro, buf, 4) == 4 && !memcmp(buf, "disk", 4), "disk: %s", buf);
	CHECK(pread(deleted, buf, 7, 0) == 7 && !memcmp(buf, "deleted", 7), "deleted: %s", buf);
	content("mem/merged/uno", "one"), content("mem/merged/two", "TWO"), content("mem/low2/two", "two"), content("mem/up/two", "TWO");
	CHECK(access("mem/merged/gone", F_OK) < 0 && access("mem/merged/one", F_OK) < 0 && !access("mem/low2/gone", F_OK), "what has gone");
	content("disk/merged/new", "on disk"), content("disk/up/new", "on disk"), content("self/own", "changed"), content("ro/two", "two");
	content("second/uno", "one"), content("part/deep", "deep");
	put("mem/merged/dir/deep", "DEEP"), content("part/deep", "DEEP"), content("mem/low2/dir/deep", "deep");
	CHECK(open("ro/x", O_CREAT | O_WRONLY, 0600) < 0 && errno == EROFS, "what has no upper layer can be written to");
	struct statvfs v;
	CHECK(!statvfs("mem/merged", &v) && v.f_flag & ST_NOSUID, "its flags");
	CHECK(!umount("part") && !umount("second") && !umount("self"), "umount");
	content("self/own", "own");
	pass();
}
