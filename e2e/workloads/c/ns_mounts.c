/*
 * Children with mount namespaces of their own: one with a private /tmp, as a service manager makes it, with files, binds, and a
 * second process in it; one that has pivoted into a root of its own; propagation between them; descriptors that reach across.
 */
#include "workload.h"
#include <sched.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

struct shared {
	volatile int go, bad;
	char why[4][200];
};
static struct shared *s;
static int tell[2];

#define TRY(cond, ...)                                                                       \
	do {                                                                                 \
		if (!(cond)) {                                                               \
			int e_ = errno, n_ = snprintf(s->why[me], 160, __VA_ARGS__);         \
			snprintf(s->why[me] + n_, 200 - n_, " (%s)", strerror(e_));          \
			s->bad = me + 1;                                                     \
			_exit(write(tell[1], "x", 1));                                       \
		}                                                                            \
	} while (0)

static void hold(int me)
{
	TRY(write(tell[1], "x", 1) == 1, "tell");
	while (!s->go)
		usleep(1000);
}

static void content(int fd, const char *want, int me, const char *what)
{
	char buf[64] = "";
	TRY(pread(fd, buf, sizeof buf - 1, 0) == (ssize_t)strlen(want) && !strcmp(buf, want), "%s: %s instead of %s", what, buf, want);
}

static void put(const char *name, const char *text, int me)
{
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
	TRY(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd), "%s", name);
}

static char where[4096], path[4200];

/* A private directory, as PrivateTmp= makes it; a second process lives in it. */
static void private_tmp(void)
{
	int me = 0;
	TRY(!unshare(CLONE_NEWNS), "unshare");
	TRY(!mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL), "slave");
	TRY(!mount("private", "point", "tmpfs", MS_NOSUID, "size=1m,mode=1777"), "tmpfs");
	put("point/file", "inside", me);
	TRY(!mkdir("point/dir", 0750) && !mkdir("point/bind", 0700) && !symlink("file", "point/link"), "names");
	put("point/dir/deep", "deep", me);
	TRY(!mount("point/dir", "point/bind", NULL, MS_BIND, NULL), "bind");
	TRY(!mount(NULL, "point/bind", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL), "read-only");
	int fd = open("point/file", O_RDWR), deep = open("point/bind/deep", O_RDONLY);
	TRY(fd >= 0 && deep >= 0 && lseek(fd, 2, SEEK_SET) == 2, "open");
	int huge = !mkdir("point/huge", 0700) && !mount("pages", "point/huge", "hugetlbfs", MS_NODEV, "pagesize=2M,size=8M,mode=0750");
	TRY(huge || errno == EPERM, "hugetlbfs"); /* a user namespace may not */
	TRY(!chdir("point/dir"), "chdir");
	pid_t second = fork();
	if (!second) {
		me = 1;
		int own = open("deep", O_RDONLY);
		TRY(own >= 0, "deep");
		hold(me);
		content(own, "deep", me, "the second one's file");
		TRY(!access("../file", F_OK), "its directory");
		TRY(!mkdir("made", 0700), "mkdir");
		_exit(0);
	}
	hold(me);
	char buf[32] = "";
	TRY(read(fd, buf, 4) == 4 && !memcmp(buf, "side", 4), "the place in the file: %s", buf);
	content(deep, "deep", me, "through the bind");
	TRY(open("../bind/new", O_CREAT | O_WRONLY, 0600) < 0 && errno == EROFS, "the bind can be written to");
	int status;
	TRY(waitpid(second, &status, 0) == second && !status, "the second one: %x", status);
	TRY(!access("made", F_OK), "what the second one made");
	struct stat st;
	TRY(!lstat("../link", &st) && S_ISLNK(st.st_mode), "the link");
	struct statvfs v;
	snprintf(path, sizeof path, "%s/point", where);
	TRY(!statvfs(path, &v) && v.f_flag & ST_NOSUID && v.f_blocks * v.f_frsize == 1 << 20, "flags and size");
	strcat(path, "/huge");
	TRY(!huge || (!statvfs(path, &v) && v.f_flag & ST_NODEV && v.f_bsize == 2 << 20 && v.f_blocks == 4), "huge pages: %lu of %lu", v.f_blocks, v.f_bsize);
	_exit(0);
}

/* A root of its own, with a tmpfs that is shared with the first process's view by a peer group of its own. */
static void pivoted(void)
{
	int me = 2, before = open("outside", O_RDONLY);
	TRY(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL), "unshare");
	TRY(!mount("root", "root", "tmpfs", 0, "size=1m") && !mkdir("root/old", 0700) && !mkdir("root/sub", 0700), "root");
	TRY(!chdir("root") && !syscall(SYS_pivot_root, ".", "old"), "pivot_root");
	TRY(!chdir("/") && !umount2("/old", MNT_DETACH), "umount");
	put("/in-root", "pivoted", me);
	TRY(!mount("sub", "/sub", "tmpfs", 0, "size=64k") && !mount(NULL, "/sub", NULL, MS_SHARED, NULL), "sub");
	int fd = open("/in-root", O_RDONLY);
	TRY(fd >= 0 && before >= 0, "open");
	pid_t below = fork();
	if (!below) {
		me = 3;
		TRY(!unshare(CLONE_NEWNS), "unshare"); /* a peer of the parent's /sub */
		hold(me);
		struct stat up, new = {0};
		TRY(!stat("/sub", &up), "stat");
		for (int i = 0; i < 20000 && (stat("/sub/new", &new) || new.st_dev == up.st_dev); i++)
			usleep(1000);
		TRY(!mkdir("/sub/new/other", 0700), "propagation from the parent"); /* on what the parent has mounted */
		_exit(0);
	}
	hold(me);
	content(fd, "pivoted", me, "file of its root");
	content(before, "outside", me, "file from before");
	TRY(access("/old", F_OK) == 0 && access("/etc/passwd", F_OK) < 0, "its root");
	TRY(!mkdir("/sub/new", 0700) && !mount("new", "/sub/new", "tmpfs", 0, "size=64k"), "mount");
	int status;
	TRY(waitpid(below, &status, 0) == below && !status, "the one below: %s", s->why[3]);
	TRY(!access("/sub/new/other", F_OK), "what it made");
	_exit(0);
}

int main(void)
{
	s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(s != MAP_FAILED && !pipe(tell) && getcwd(where, sizeof where), "set up");
	CHECK(!mkdir("point", 0700) && !mkdir("root", 0700), "mkdir");
	int fd = open("outside", O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0 && write(fd, "outside", 7) == 7, "file");
	pid_t a = fork();
	if (!a)
		private_tmp();
	pid_t b = fork();
	if (!b)
		pivoted();
	for (int i = 0; i < 4; i++) {
		char c;
		CHECK(read(tell[0], &c, 1) == 1, "pipe");
		CHECK(!s->bad, "child: %s", s->why[s->bad - 1]);
	}
	/* A file that only the other namespace has. */
	char name[64];
	snprintf(name, sizeof name, "/proc/%d/cwd/deep", a);
	int across = open(name, O_RDONLY);
	CHECK(across >= 0, "open %s", name);
	CHECK(access("point/file", F_OK) < 0, "point is not private");
	ready();
	s->go = 1;
	int sa, sb;
	CHECK(waitpid(a, &sa, 0) == a && waitpid(b, &sb, 0) == b, "wait");
	CHECK(!s->bad, "child: %s", s->why[s->bad - 1]);
	CHECK(!sa && !sb, "children ended with %x and %x", sa, sb);
	char buf[16] = "";
	CHECK(pread(across, buf, 4, 0) == 4 && !strcmp(buf, "deep"), "across: %s", buf);
	CHECK(access("point/file", F_OK) < 0, "point is not private any more");
	pass();
}
