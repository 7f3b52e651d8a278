/* A program whose second thread is restricted by Landlock, which is not carried. */
#include "../../workloads/c/workload.h"
#include <linux/landlock.h>
#include <pthread.h>

static int up[2], down[2];
static int refused(void) { return symlink("x", "link") < 0 && errno == EACCES; }

static void *restricted(void *arg)
{
	struct landlock_ruleset_attr attr = {.handled_access_fs = LANDLOCK_ACCESS_FS_MAKE_SYM};
	int fd = syscall(SYS_landlock_create_ruleset, &attr, sizeof attr, 0);
	CHECK(fd >= 0 && !syscall(SYS_landlock_restrict_self, fd, 0), "landlock");
	close(fd);
	char b = refused();
	CHECK(write(up[1], &b, 1) == 1 && read(down[0], &b, 1) == 1, "pipe");
	b = refused();
	CHECK(write(up[1], &b, 1) == 1, "pipe");
	return arg;
}

int main(void)
{
	pthread_t t;
	char b;
	CHECK(!pipe(up) && !pipe(down) && !pthread_create(&t, NULL, restricted, NULL), "thread");
	CHECK(read(up[0], &b, 1) == 1 && b, "it is not restricted");
	ready();
	CHECK(write(down[1], "g", 1) == 1 && read(up[0], &b, 1) == 1 && b, "it is no longer restricted");
	CHECK(!pthread_join(t, NULL), "join");
	pass();
}
