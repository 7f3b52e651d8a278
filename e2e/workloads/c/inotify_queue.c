/* inotify: events that wait to be read are the same afterwards, in their order, with names, and the numbers that tie the two halves
 * of a move together; also those of watches that have ended, and a queue that has overflowed. New ones come after them. */
#include "workload.h"
#include <sys/inotify.h>

enum { MAX = 64 };

struct queue {
	int fd, n, overflowed;
	struct {
		int wd;
		unsigned mask, cookie;
		char name[256];
	} e[MAX];
};

static char buf[65536] __attribute__((aligned(8)));

/* drain reads all that waits. */
static void drain(struct queue *q)
{
	int n;
	while ((n = read(q->fd, buf, sizeof buf)) > 0)
		for (char *p = buf; p < buf + n;) {
			struct inotify_event *e = (void *)p;
			p += sizeof *e + e->len;
			if (q->n < MAX) {
				q->e[q->n].wd = e->wd, q->e[q->n].mask = e->mask, q->e[q->n].cookie = e->cookie;
				strcpy(q->e[q->n].name, e->len ? e->name : "");
			}
			q->n++;
			q->overflowed += e->mask == IN_Q_OVERFLOW;
		}
	CHECK(errno == EAGAIN, "read");
}

static void touch(const char *name)
{
	int fd = open(name, O_CREAT | O_RDWR, 0644);
	CHECK(fd >= 0 && write(fd, "x", 1) == 1 && pread(fd, buf, 1, 0) == 1 && !close(fd), "touch %s", name);
}

/* act makes events of all kinds in a directory; the second watches less. */
static void act(struct queue *q, const char *dir)
{
	char longest[256];
	memset(longest, 'n', 255);
	longest[255] = 0;
	CHECK(!mkdir(dir, 0755) && !chdir(dir), "mkdir");
	q->fd = inotify_init1(IN_NONBLOCK);
	CHECK(!mkdir("d", 0755) && !mkdir("other", 0755), "mkdir");
	touch("d/file");
	touch("d/gone");
	touch("rest");
	CHECK(inotify_add_watch(q->fd, "d", IN_ALL_EVENTS) == 1 && inotify_add_watch(q->fd, "d/file", IN_ALL_EVENTS) == 2 &&
		      inotify_add_watch(q->fd, "other", IN_MOVE | IN_DELETE_SELF) == 3 && inotify_add_watch(q->fd, "d/gone", IN_DELETE_SELF) == 4 &&
		      inotify_add_watch(q->fd, "rest", IN_OPEN) == 5,
	      "inotify_add_watch");
	touch("d/new");
	touch("d/file");
	CHECK(!mkdir("d/sub", 0755) && !chmod("d/sub", 0700) && !rename("d/sub", "d/sub2") && !rmdir("d/sub2"), "a directory");
	CHECK(!rename("d/new", "other/there") && !rename("other/there", "outside") && !rename("outside", "d/new"), "moves");
	CHECK(!chmod("d/file", 0600) && !rename("d/file", "d/file2") && !truncate("d/file2", 0), "the file");
	CHECK(!unlink("d/gone") && !unlink("d/new") && !rename("d", "d2") && !rename("d2", "d") && !rmdir("other"), "the end");
	touch("rest");
	CHECK(!inotify_rm_watch(q->fd, 5), "inotify_rm_watch");
	char name[300];
	snprintf(name, sizeof name, "d/%s", longest);
	touch(name);
	CHECK(!chdir(".."), "chdir");
}

int main(void)
{
	static struct queue before, after, full, again;
	act(&before, "a");
	act(&after, "b");
	drain(&before);
	CHECK(before.n > 30 && before.n < MAX, "%d events", before.n);
	full.fd = inotify_init1(IN_NONBLOCK);
	int f = open("full", O_CREAT | O_RDWR, 0644);
	CHECK(inotify_add_watch(full.fd, "full", IN_MODIFY | IN_ACCESS) == 1, "inotify_add_watch");
	for (int i = 0; i < 20000; i++)
		CHECK(pwrite(f, "x", 1, 0) == 1 && pread(f, buf, 1, 0) == 1, "write and read");
	ready();
	drain(&full);
	CHECK(full.overflowed == 1 && full.n > MAX, "%d events, %d overflows", full.n, full.overflowed);
	CHECK(full.e[0].mask == IN_MODIFY && full.e[1].mask == IN_ACCESS && full.e[0].wd == 1, "the first events are %x %x", full.e[0].mask, full.e[1].mask);
	drain(&after);
	CHECK(after.n == before.n, "%d events, not %d", after.n, before.n);
	for (int i = 0; i < after.n; i++) {
		CHECK(after.e[i].wd == before.e[i].wd && after.e[i].mask == before.e[i].mask && !strcmp(after.e[i].name, before.e[i].name),
		      "event %d: watch %d mask %x %s, not watch %d mask %x %s", i, after.e[i].wd, after.e[i].mask, after.e[i].name, before.e[i].wd, before.e[i].mask,
		      before.e[i].name);
		for (int j = 0; j < i; j++)
			CHECK((after.e[i].cookie == after.e[j].cookie) == (before.e[i].cookie == before.e[j].cookie), "cookies of events %d and %d", j, i);
	}
	again.fd = after.fd;
	CHECK(!unlink("b/d/file2") && inotify_add_watch(after.fd, "full", IN_OPEN) == 6, "go on");
	drain(&again);
	CHECK(again.n == 4 && again.e[0].wd == 2 && again.e[0].mask == IN_ATTRIB && again.e[1].mask == IN_DELETE_SELF && again.e[2].mask == IN_IGNORED &&
		      again.e[3].wd == 1 && again.e[3].mask == IN_DELETE && !strcmp(again.e[3].name, "file2"),
	      "%d new events: %x %x %x", again.n, again.e[0].mask, again.e[1].mask, again.e[2].mask);
	pass();
}
