/* A process that makes, renames, swaps, grows and deletes files of /dev/shm all the time: at any
 * instant they are what it knows of them. None is ever open: of a file that is, a plan says that it has another name by now. */
#include "workload.h"
#include <linux/fs.h>

enum { FILES = 6 };
static char base[64];
static int content[FILES]; /* their sizes; 0: it is not there */

static const char *name(int i)
{
	static char path[4][96];
	static int k;
	snprintf(path[k = (k + 1) % 4], sizeof *path, "%s/%s%d", base, i % 2 ? "d/" : "", i);
	return path[k];
}

static void step(unsigned n)
{
	int i = n * 7 % FILES, j = (n * 5 + 1) % FILES;
	if (!content[i]) {
		CHECK(!mknod(name(i), S_IFREG | 0600, 0) && !truncate(name(i), n + 1), "making %s", name(i));
		content[i] = n + 1;
	} else if (i != j && content[j] && n % 3) {
		CHECK(!syscall(SYS_renameat2, AT_FDCWD, name(i), AT_FDCWD, name(j), RENAME_EXCHANGE), "swapping %s and %s", name(i), name(j));
		int v = content[i];
		content[i] = content[j], content[j] = v;
	} else if (i != j && !content[j]) {
		CHECK(!rename(name(i), name(j)), "renaming %s to %s", name(i), name(j));
		content[j] = content[i], content[i] = 0;
	} else if (n % 4) {
		CHECK(!truncate(name(i), n + 1), "growing %s", name(i));
		content[i] = n + 1;
	} else {
		CHECK(!unlink(name(i)), "deleting %s", name(i));
		content[i] = 0;
	}
}

static void verify(void)
{
	for (int i = 0; i < FILES; i++) {
		struct stat st = {0};
		CHECK(!stat(name(i), &st) == !!content[i] && st.st_size == content[i], "%s: %ld bytes, not %d", name(i), (long)st.st_size, content[i]);
	}
}

int main(void)
{
	char d[80];
	snprintf(base, sizeof base, "/dev/shm/migrate-churn-%d", getpid());
	snprintf(d, sizeof d, "%s/d", base);
	CHECK(!mkdir(base, 0700) && !mkdir(d, 0700), "mkdir");
	announce();
	unsigned n = 0;
	for (; !told; n++) {
		step(n);
		verify();
		usleep(300);
	}
	for (unsigned more = n + 50; n < more; n++) {
		step(n);
		verify();
	}
	for (int i = 0; i < FILES; i++)
		CHECK(!content[i] || !unlink(name(i)), "unlink");
	CHECK(!rmdir(d) && !rmdir(base), "rmdir");
	pass();
}
