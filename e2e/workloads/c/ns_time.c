/* Time namespaces of children: one that a child was born into, and one into which nobody has been born yet. */
#include "workload.h"
#include <sched.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

static double clock_of(clockid_t c)
{
	struct timespec t;
	clock_gettime(c, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void later(const char *text)
{
	int fd = open("/proc/self/timens_offsets", O_WRONLY);
	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd), "offsets %s", text);
}

static int differs(double got, double want) { return got - want < 0 || got - want > 1000; }

int main(void)
{
	volatile int *go = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	double m = clock_of(CLOCK_MONOTONIC), b = clock_of(CLOCK_BOOTTIME);
	int p[2];
	char c;
	CHECK(go != MAP_FAILED && !pipe(p), "set up");
	CHECK(!unshare(CLONE_NEWTIME), "unshare");
	later("monotonic 1000000 5\nboottime 2000000 7\n");
	pid_t child = fork();
	if (!child) {
		if (differs(clock_of(CLOCK_MONOTONIC), m + 1000000))
			_exit(1);
		if (unshare(CLONE_NEWTIME)) /* for its own children, one day */
			_exit(2);
		later("monotonic 5000000 0\n");
		if (write(p[1], "x", 1) != 1)
			_exit(3);
		while (!*go)
			usleep(1000);
		if (differs(clock_of(CLOCK_MONOTONIC), m + 1000000) || differs(clock_of(CLOCK_BOOTTIME), b + 2000000))
			_exit(4);
		pid_t g = fork();
		if (!g)
			_exit(differs(clock_of(CLOCK_MONOTONIC), m + 5000000) ? 1 : 0);
		int status;
		_exit(waitpid(g, &status, 0) == g && !status ? 0 : 5);
	}
	CHECK(read(p[0], &c, 1) == 1, "child");
	ready();
	*go = 1;
	int status;
	CHECK(waitpid(child, &status, 0) == child && !status, "the child: %x", status);
	CHECK(!differs(clock_of(CLOCK_MONOTONIC), m) && !differs(clock_of(CLOCK_BOOTTIME), b), "the clocks at home");
	pid_t next = fork();
	if (!next)
		_exit(differs(clock_of(CLOCK_MONOTONIC), m + 1000000) ? 1 : 0);
	CHECK(waitpid(next, &status, 0) == next && !status, "the next child: %x", status);
	pass();
}
