/* A tree of mounts: contents of tmpfs, binds, read-only mounts, propagation, overmounts; and files that are open in it. */
#include "../c/workload.h"
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

static char before[65536], after[65536];

/* The mounts without their ids, device numbers and numbers of peer groups. */
static void mounts(char *out)
{
	FILE *f = fopen("/proc/self/mountinfo", "r");
	char line[4096];
	int groups[64], n = 0;
	while (fgets(line, sizeof line, f)) {
		char root[256], at[256], options[256], *rest = strstr(line, " - ");
		CHECK(rest && sscanf(line, "%*d %*d %*s %255s %255s %255s", root, at, options) == 3, "parse %s", line);
		out += sprintf(out, "%s %s %s", root, at, options);
		for (char *p = line; p < rest; p++) {
			int g, i;
			if (sscanf(p, " shared:%d", &g) != 1 && sscanf(p, " master:%d", &g) != 1)
				continue;
			for (i = 0; i < n && groups[i] != g; i++)
				;
			if (i == n)
				groups[n++] = g;
			out += sprintf(out, " %.7s%d", p, i);
		}
		if (strstr(line, " unbindable "))
			out += sprintf(out, " unbindable");
		out += sprintf(out, "%s", rest);
	}
	fclose(f);
}

/* Lines in any order: mountinfo sorts by ids. */
static int compare(const void *a, const void *b) { return strcmp(*(char **)a, *(char **)b); }
static void sort(char *text)
{
	char *lines[256], *copy = strdup(text);
	int n = 0;
	for (char *p = strtok(copy, "\n"); p; p = strtok(NULL, "\n"))
		lines[n++] = p;
	qsort(lines, n, sizeof *lines, compare);
	*text = 0;
	for (int i = 0; i < n; i++)
		text += sprintf(text, "%s\n", lines[i]);
}

int main(void)
{
	CHECK(!mount("t", "/tmp", "tmpfs", MS_NOSUID, "size=1m,mode=1770"), "tmpfs");
	CHECK(!mkdir("/tmp/dir", 0750) && !mkdir("/tmp/bind", 0700) && !mkdir("/tmp/slave", 0700) && !mkdir("/tmp/over", 0700), "mkdir");
	int fd = open("/tmp/dir/file", O_RDWR | O_CREAT, 0640);
	CHECK(fd >= 0 && pwrite(fd, "hello", 5, 0) == 5 && pwrite(fd, "end", 3, 300000) == 3 && lseek(fd, 2, SEEK_SET) == 2, "file");
	CHECK(!link("/tmp/dir/file", "/tmp/second") && !symlink("dir/file", "/tmp/link") && !mkfifo("/tmp/fifo", 0611), "names");
	CHECK(!chown("/tmp/dir", 3, 4) && !chmod("/tmp/fifo", 04611), "owner");
	struct timespec times[2] = {{1000, 5}, {2000, 6}};
	CHECK(!utimensat(AT_FDCWD, "/tmp/dir", times, 0), "times");
	int gone = open("/tmp/dir/gone", O_RDWR | O_CREAT, 0600);
	CHECK(gone >= 0 && write(gone, "gone", 4) == 4 && !unlink("/tmp/dir/gone"), "deleted file");
	CHECK(!utimensat(AT_FDCWD, "/tmp/dir", times, 0), "times");
	char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(map != MAP_FAILED, "mmap");

	CHECK(!mount("/tmp/dir", "/tmp/bind", NULL, MS_BIND, NULL) && !mount(NULL, "/tmp/bind", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOEXEC, NULL), "bind");
	CHECK(!mount(NULL, "/tmp", NULL, MS_SHARED, NULL), "shared");
	CHECK(!mount("/tmp/dir", "/tmp/slave", NULL, MS_BIND, NULL) && !mount(NULL, "/tmp/slave", NULL, MS_SLAVE, NULL), "slave");
	CHECK(!mount("lower", "/tmp/over", "tmpfs", 0, "size=64k") && !mount(NULL, "/tmp/over", NULL, MS_PRIVATE, NULL), "lower");
	CHECK(!mkdir("/tmp/over/sub", 0700) && !mount("upper", "/tmp/over/sub", "tmpfs", MS_NOATIME, "size=64k"), "upper");
	CHECK(!mount(NULL, "/tmp/over/sub", NULL, MS_UNBINDABLE, NULL), "unbindable");
	CHECK(!mkdir("/tmp/proc", 0700) && !mount("second", "/tmp/proc", "proc", MS_RDONLY, NULL), "proc");
	int in = open("/tmp/over/sub/in", O_RDWR | O_CREAT, 0600);
	CHECK(in >= 0 && write(in, "in", 2) == 2, "file in the upper mount");
	mounts(before);
	sort(before);
	ready();
	mounts(after);
	sort(after);
	CHECK(!strcmp(before, after), "mounts differ; see the output%d", printf("before\n%s\nafter\n%s\n", before, after) * fflush(stdout));
	struct stat st, st2;
	char buf[16] = "";
	CHECK(read(fd, buf, 3) == 3 && !memcmp(buf, "llo", 3) && !fstat(fd, &st) && st.st_size == 300003 && st.st_nlink == 2 && st.st_blocks < 100,
	      "the open file: %s, %ld bytes, %ld names, %ld blocks", buf, (long)st.st_size, (long)st.st_nlink, (long)st.st_blocks);
	memcpy(map, "J", 1);
	CHECK(pread(fd, buf, 1, 0) == 1 && *buf == 'J', "the mapping");
	CHECK(!stat("/tmp/second", &st2) && st2.st_ino == st.st_ino && (st.st_mode & 07777) == 0640, "its second name");
	CHECK(!stat("/tmp/link", &st2) && st2.st_ino == st.st_ino, "the link");
	CHECK(!lstat("/tmp/fifo", &st) && S_ISFIFO(st.st_mode) && (st.st_mode & 07777) == 04611, "the FIFO");
	CHECK(!stat("/tmp", &st) && (st.st_mode & 07777) == 01770, "the root of the tmpfs: %o", st.st_mode);
	CHECK(!stat("/tmp/dir", &st) && st.st_uid == 3 && st.st_gid == 4 && (st.st_mode & 07777) == 0750, "the directory");
	CHECK(pread(gone, buf, 4, 0) == 4 && !memcmp(buf, "gone", 4) && !fstat(gone, &st) && !st.st_nlink, "the deleted file");
	struct statvfs v;
	CHECK(!statvfs("/tmp", &v) && v.f_blocks * v.f_frsize == 1 << 20 && v.f_flag & ST_NOSUID, "size of the tmpfs");
	CHECK(open("/tmp/bind/new", O_RDWR | O_CREAT, 0600) < 0 && errno == EROFS, "the read-only bind");
	CHECK(!mkdir("/tmp/dir/point", 0700) && !mount("x", "/tmp/dir/point", "tmpfs", 0, NULL) && !access("/tmp/slave/point", F_OK), "a new mount");
	CHECK(!stat("/tmp/dir/point", &st) && !stat("/tmp/slave/point", &st2) && st.st_dev == st2.st_dev, "propagation to the slave");
	CHECK(pread(in, buf, 2, 0) == 2 && !memcmp(buf, "in", 2), "the file in the upper mount");
	pass();
}
