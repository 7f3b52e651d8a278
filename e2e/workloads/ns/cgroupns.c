/* A cgroup namespace: the tree is at its root. */
#include "../c/workload.h"
#include <sched.h>

static void at_root(const char *when)
{
	FILE *f = fopen("/proc/self/cgroup", "r");
	char line[512];
	CHECK(f, "open");
	while (fgets(line, sizeof line, f)) {
		char *path = strchr(strchr(line, ':') + 1, ':');
		CHECK(!strcmp(path, ":/\n"), "%s: %s", when, line);
	}
	fclose(f);
}

int main(void)
{
	CHECK(!unshare(CLONE_NEWCGROUP), "unshare");
	at_root("before");
	ready();
	at_root("after");
	pass();
}
