/* Thousands of descriptors, and the largest number that the limit allows. */
#include "workload.h"
#include <sys/eventfd.h>
#include <sys/resource.h>

enum { N = 3000 };

int main(void)
{
	struct rlimit l;
	CHECK(!getrlimit(RLIMIT_NOFILE, &l), "getrlimit");
	rlim_t max = l.rlim_max < 8192 ? l.rlim_max : 8192;
	l.rlim_cur = max;
	CHECK(!setrlimit(RLIMIT_NOFILE, &l), "setrlimit");
	int first = -1, last = -1, f = open("data", O_RDWR | O_CREAT, 0600);
	for (int i = 0; i < N; i++) {
		last = i % 3 ? dup(f) : eventfd(i, EFD_NONBLOCK);
		CHECK(last >= 0, "descriptor %d", i);
		if (first < 0)
			first = last;
	}
	CHECK(last - first == N - 1, "numbers");
	int high = fcntl(f, F_DUPFD_CLOEXEC, max - 1);
	CHECK(high == (int)max - 1, "the largest");
	ready();
	CHECK(!getrlimit(RLIMIT_NOFILE, &l) && l.rlim_cur == max, "limit");
	CHECK(write(f, "x", 1) == 1 && lseek(high, 0, SEEK_CUR) == 1 && (fcntl(high, F_GETFD) & FD_CLOEXEC), "the largest");
	for (int i = 0; i < N; i++) {
		uint64_t v;
		if (i % 3)
			CHECK(lseek(first + i, 0, SEEK_CUR) == 1, "descriptor %d", first + i);
		else
			CHECK(i ? read(first + i, &v, 8) == 8 && v == (uint64_t)i : read(first, &v, 8) == -1, "eventfd %d", first + i);
	}
	pass();
}
