/* fanotify: marks of files, of a mount and of a file system, with masks and ignored masks, and the flags of the group. */
#include "workload.h"
#include <sys/fanotify.h>

static void info(int fd, char *out, size_t size)
{
	char name[64], line[512];
	snprintf(name, sizeof name, "/proc/self/fdinfo/%d", fd);
	FILE *f = fopen(name, "r");
	CHECK(f, "fdinfo");
	*out = 0;
	while (fgets(line, sizeof line, f))
		if (!strncmp(line, "fanotify ", 9))
			strncat(out, line, size - strlen(out) - 1);
	fclose(f);
}

static char was[4096], is[4096], was2[4096], is2[4096];

int main(void)
{
	int group = fanotify_init(FAN_NONBLOCK | FAN_CLASS_NOTIF | FAN_UNLIMITED_QUEUE, O_RDONLY | O_LARGEFILE);
	int names = fanotify_init(FAN_NONBLOCK | FAN_CLOEXEC | FAN_REPORT_DFID_NAME, 0);
	CHECK(group >= 0 && names >= 0, "fanotify_init");
	int f = open("file", O_CREAT | O_RDWR, 0644);
	CHECK(f >= 0 && !mkdir("d", 0755), "file");
	CHECK(!fanotify_mark(group, FAN_MARK_ADD, FAN_MODIFY | FAN_ACCESS | FAN_OPEN | FAN_CLOSE, AT_FDCWD, "file"), "inode mark");
	CHECK(!fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_MOUNT, FAN_ONDIR | FAN_OPEN | FAN_CLOSE, AT_FDCWD, "/tmp"), "mount mark");
	CHECK(!fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_MOUNT | FAN_MARK_IGNORED_MASK | FAN_MARK_IGNORED_SURV_MODIFY, FAN_MODIFY | FAN_ACCESS,
			     AT_FDCWD, "/tmp"), "ignored");
	CHECK(!fanotify_mark(group, FAN_MARK_ADD | FAN_MARK_FILESYSTEM, FAN_MODIFY, AT_FDCWD, "/dev"), "file system mark");
	CHECK(!fanotify_mark(names, FAN_MARK_ADD, FAN_CREATE | FAN_DELETE | FAN_ONDIR, AT_FDCWD, "d"), "names");
	info(group, was, sizeof was);
	info(names, was2, sizeof was2);
	ready();
	info(group, is, sizeof is);
	info(names, is2, sizeof is2);
	CHECK(!strcmp(was, is), "marks were\n%sand are\n%s", was, is);
	CHECK(!strcmp(was2, is2), "marks were\n%sand are\n%s", was2, is2);
	char buf[4096];
	int g = open("d/new", O_CREAT | O_RDWR, 0600);
	CHECK(g >= 0 && read(names, buf, sizeof buf) > 0, "no event");
	struct fanotify_event_metadata *m = (void *)buf;
	CHECK(m->mask == FAN_CREATE && strstr(buf + m->event_len - 8, "new"), "event mask %llx", (unsigned long long)m->mask);
	CHECK(read(group, buf, sizeof buf) > 0 && m->vers == FANOTIFY_METADATA_VERSION, "no event of the mount");
	CHECK(!fanotify_mark(group, FAN_MARK_REMOVE | FAN_MARK_MOUNT, FAN_ONDIR | FAN_OPEN | FAN_CLOSE, AT_FDCWD, "/tmp"), "remove");
	pass();
}
