/* inotify: watches of files, directories, symbolic links, deleted files, by several instances; their numbers and flags; no
 * event of the move itself; a description shared with a child. */
#include "workload.h"
#include <sys/inotify.h>

static char buf[8192] __attribute__((aligned(8)));

/* next reads one event of a watch and returns its mask; what was read before is kept for later calls. */
static unsigned next(int fd, int wd, const char *name)
{
	static int have, at;
	if (at == have) {
		at = 0;
		have = read(fd, buf, sizeof buf);
		CHECK(have > 0, "no event for %d %s", wd, name ? name : "");
	}
	struct inotify_event *e = (void *)(buf + at);
	at += sizeof *e + e->len;
	CHECK(e->wd == wd, "event of watch %d (mask %x), not of %d", e->wd, e->mask, wd);
	CHECK(!name || (e->len && !strcmp(e->name, name)), "event of %s, not %s", e->name, name);
	return e->mask;
}

static void touch(const char *name)
{
	int fd = open(name, O_CREAT | O_RDWR, 0644);
	CHECK(fd >= 0 && !close(fd), "touch %s", name);
}

int main(void)
{
	int a = inotify_init1(IN_NONBLOCK | IN_CLOEXEC), b = inotify_init1(IN_NONBLOCK), none = inotify_init();
	CHECK(a >= 0 && b >= 0 && none >= 0, "inotify_init");
	CHECK(!mkdir("d", 0755) && !mkdir("d/e", 0755), "mkdir");
	touch("d/file");
	touch("d/other");
	touch("ghost");
	touch("once");
	CHECK(!symlink("file", "d/link"), "symlink");
	int ghost = open("ghost", O_RDWR);
	for (int i = 0; i < 5; i++) { /* numbers 1 to 4 are gone, 5 stays */
		int wd = inotify_add_watch(a, "d/e", IN_CREATE);
		CHECK(wd == i + 1, "first watches");
		if (i < 4)
			CHECK(!inotify_rm_watch(a, wd), "inotify_rm_watch");
	}
	int dir = inotify_add_watch(a, "d", IN_CREATE | IN_DELETE | IN_ONLYDIR | IN_EXCL_UNLINK);
	int file = inotify_add_watch(a, "d/file", IN_ALL_EVENTS);
	int other = inotify_add_watch(b, "d/other", IN_ALL_EVENTS), twice = inotify_add_watch(b, "d/file", IN_MODIFY);
	int linkwd = inotify_add_watch(a, "d/link", IN_DELETE_SELF | IN_ATTRIB | IN_DONT_FOLLOW);
	int gone = inotify_add_watch(a, "ghost", IN_MODIFY | IN_CLOSE_WRITE | IN_DELETE_SELF);
	int once = inotify_add_watch(a, "once", IN_OPEN | IN_ONESHOT);
	CHECK(dir == 6 && file == 7 && other == 1 && twice == 2 && linkwd == 8 && gone == 9 && once == 10, "watch numbers");
	CHECK(!unlink("ghost"), "unlink");
	while (read(a, buf, sizeof buf) > 0)
		;
	pid_t child = fork();
	if (!child) {
		pause();
		_exit(1);
	}
	ready();
	CHECK(read(a, buf, sizeof buf) == -1 && errno == EAGAIN, "an event of the move, watch %d mask %x", ((struct inotify_event *)buf)->wd,
	      ((struct inotify_event *)buf)->mask);
	CHECK(read(b, buf, sizeof buf) == -1 && errno == EAGAIN, "an event of the move in the second");
	CHECK(!(fcntl(none, F_GETFL) & O_NONBLOCK) && (fcntl(a, F_GETFD) & FD_CLOEXEC), "flags");
	touch("d/new");
	CHECK(next(a, dir, "new") == IN_CREATE, "no IN_CREATE");
	touch("d/e/new");
	CHECK(next(a, 5, "new") == IN_CREATE, "no IN_CREATE in d/e");
	int fd = open("d/file", O_RDWR);
	CHECK(next(a, file, NULL) == IN_OPEN, "no IN_OPEN");
	CHECK(write(fd, "x", 1) == 1 && next(a, file, NULL) == IN_MODIFY && next(b, twice, NULL) == IN_MODIFY, "no IN_MODIFY");
	CHECK(!unlink("d/link"), "unlink");
	CHECK(next(a, linkwd, NULL) == IN_ATTRIB && next(a, linkwd, NULL) == IN_DELETE_SELF && next(a, linkwd, NULL) == IN_IGNORED, "the link");
	CHECK(next(a, dir, "link") == IN_DELETE, "no IN_DELETE");
	touch("once");
	CHECK(next(a, once, NULL) == IN_OPEN && next(a, once, NULL) == IN_IGNORED, "one shot");
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	CHECK(write(ghost, "y", 1) == 1 && next(a, gone, NULL) == IN_MODIFY, "deleted file");
	close(ghost);
	CHECK(next(a, gone, NULL) == IN_CLOSE_WRITE && next(a, gone, NULL) == IN_DELETE_SELF && next(a, gone, NULL) == IN_IGNORED, "deleted file closed");
	CHECK(inotify_add_watch(a, "d", IN_CREATE) == dir && inotify_add_watch(a, "d/other", IN_CREATE) == 11, "the next number");
	pass();
}
