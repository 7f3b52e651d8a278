/* A time namespace with offsets, within one boot. */
#include "../c/workload.h"
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

int main(int argc, char **argv)
{
	static const char offsets[] = "monotonic 1000000 5\nboottime 2000000 7\n";
	if (argc == 1) {
		CHECK(!unshare(CLONE_NEWTIME), "unshare");
		int fd = open("/proc/self/timens_offsets", O_WRONLY);
		CHECK(fd >= 0 && write(fd, offsets, sizeof offsets - 1) == sizeof offsets - 1 && !close(fd), "offsets");
		execl("/proc/self/exe", argv[0], "again", NULL); /* which enters it */
		fail("execl");
	}
	double m = clock_of(CLOCK_MONOTONIC), b = clock_of(CLOCK_BOOTTIME);
	CHECK(m > 1000000 && b > 2000000, "clocks are %f and %f", m, b);
	ready();
	double m2 = clock_of(CLOCK_MONOTONIC) - m, b2 = clock_of(CLOCK_BOOTTIME) - b;
	CHECK(m2 >= 0 && m2 < 1000 && b2 >= 0 && b2 < 1000, "clocks went on by %f and %f", m2, b2);
	pass();
}
