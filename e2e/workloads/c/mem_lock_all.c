/* mlockall(2): what there is, what is yet to come, and both on fault only, in three processes. */
#include "memory.h"

static void check_one(int flags)
{
	static char here[8 * 4096];
	char *now = anon(8 * PAGE, PROT_READ | PROT_WRITE, 0);
	CHECK(!mlockall(flags), "mlockall(%d)", flags);
	now[2 * PAGE] = 2;
	here[5000] = 5;
	ready();
	struct area a;
	CHECK(!!has_flag(now, "lo") == !!(flags & MCL_CURRENT), "%d: a mapping of before", flags);
	CHECK(!!has_flag(here, "lo") == !!(flags & MCL_CURRENT), "%d: the data", flags);
	char *next = anon(4 * PAGE, PROT_READ | PROT_WRITE, 0);
	CHECK(area_at(next, &a), "a new mapping");
	if (flags & MCL_FUTURE) {
		CHECK(strstr(a.flags, " lo "), "%d: a new mapping is not locked: %s", flags, a.flags);
		CHECK(!!strstr(a.flags, " lf ") == !!(flags & MCL_ONFAULT), "%d: a new mapping: %s", flags, a.flags);
		CHECK(a.start != (unsigned long)next || a.end != (unsigned long)next + 4 * PAGE || a.rss == (flags & MCL_ONFAULT ? 0 : 16), "%d: %lu kB of a new mapping", flags, a.rss);
	} else {
		CHECK(!strstr(a.flags, " lo "), "%d: a new mapping: %s", flags, a.flags);
	}
	CHECK(now[2 * PAGE] == 2 && here[5000] == 5, "content");
	CHECK(!munlockall() && !has_flag(now, "lo"), "munlockall");
}

int main(void)
{
	static const int flags[] = {MCL_CURRENT, MCL_FUTURE, MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT, MCL_FUTURE | MCL_ONFAULT};
	pid_t child[4];
	for (int i = 0; i < 4; i++) {
		child[i] = fork();
		if (!child[i]) {
			char dir[16];
			sprintf(dir, "%d", i);
			CHECK(!mkdir(dir, 0777) && !chdir(dir), "directory");
			check_one(flags[i]);
			_exit(0);
		}
	}
	char name[32];
	for (int i = 0; i < 4; i++) {
		sprintf(name, "%d/ready", i);
		while (access(name, F_OK))
			usleep(1000);
	}
	ready();
	for (int i = 0; i < 4; i++) {
		int st;
		char text[256] = "";
		kill(child[i], SIGTERM);
		CHECK(waitpid(child[i], &st, 0) == child[i], "waitpid");
		sprintf(name, "%d/result", i);
		int f = open(name, O_RDONLY);
		if (f >= 0 && read(f, text, sizeof text - 1) < 0)
			fail("read");
		CHECK(!st, "child %d: %x: %s", i, st, text);
	}
	pass();
}
