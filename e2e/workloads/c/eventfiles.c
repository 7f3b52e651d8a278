/* eventfd, timerfd and epoll: full counters, timers on every clock, fired and disarmed; nested sets, edge-triggered, one-shot before
 * and after, exclusive, a set of hundreds. */
#include "workload.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

static void add(int ep, int fd, unsigned events, unsigned tag)
{
	struct epoll_event e = {.events = events, .data.u64 = 0x100000000ull * tag + tag};
	CHECK(!epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e), "add %d", tag);
}
static unsigned once(int ep)
{
	struct epoll_event e = {0};
	int n = epoll_wait(ep, &e, 1, 0);
	CHECK(n >= 0 && (!n || e.data.u64 == 0x100000001ull * e.data.u32), "epoll_wait");
	return n ? e.data.u32 : 0;
}
static int timer(int clock, int flags, double first, double every)
{
	struct timespec t = {0};
	if (flags & TFD_TIMER_ABSTIME)
		clock_gettime(clock, &t);
	int fd = timerfd_create(clock, TFD_NONBLOCK);
	if (fd < 0)
		return -1; /* alarm clocks need a device */
	double at = t.tv_sec + t.tv_nsec / 1e9 + first;
	struct itimerspec s = {{every, (every - (long)every) * 1e9}, {at, (at - (long)at) * 1e9}};
	CHECK(!timerfd_settime(fd, flags, &s, NULL), "settime of clock %d", clock);
	return fd;
}
static double left(int fd)
{
	struct itimerspec s;
	CHECK(!timerfd_gettime(fd, &s), "gettime");
	return s.it_value.tv_sec + s.it_value.tv_nsec / 1e9;
}

int main(void)
{
	int full = eventfd(0, EFD_NONBLOCK), sem = eventfd(3, EFD_SEMAPHORE | EFD_CLOEXEC), quiet = eventfd(0, 0), loud = eventfd(1, 0);
	uint64_t v = 0xfffffffffffffffe;
	CHECK(write(full, &v, 8) == 8, "full");
	int fired = timer(CLOCK_MONOTONIC, 0, 0.001, 0), ticking = timer(CLOCK_BOOTTIME, 0, 0.001, 0.001), idle = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC);
	int rel = timer(CLOCK_REALTIME, 0, 500, 7.5), abs_ = timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, 900, 0);
	int mono = timer(CLOCK_MONOTONIC, TFD_TIMER_ABSTIME, 300, 0), alarm_ = timer(CLOCK_BOOTTIME_ALARM, 0, 700, 0), ralarm = timer(CLOCK_REALTIME_ALARM, 0, 800, 0);
	int unset = timerfd_create(CLOCK_MONOTONIC, 0);
	struct itimerspec only = {{3, 0}, {0, 0}};
	CHECK(!timerfd_settime(unset, 0, &only, NULL), "an interval alone");
	int inner = epoll_create1(0), outer = epoll_create1(EPOLL_CLOEXEC), top = epoll_create1(0);
	add(inner, loud, EPOLLIN, 1);
	add(outer, inner, EPOLLIN, 2);
	add(top, outer, EPOLLIN | EPOLLET, 3);
	int edge = epoll_create1(0), shot = epoll_create1(0), excl = epoll_create1(0), many = epoll_create1(0);
	add(edge, quiet, EPOLLIN | EPOLLET, 4);
	add(shot, loud, EPOLLIN | EPOLLONESHOT, 5);
	int shot2 = eventfd(0, 0);
	add(shot, shot2, EPOLLIN | EPOLLONESHOT, 6);
	CHECK(once(shot) == 5 && once(shot) == 0, "one shot");
	add(excl, loud, EPOLLIN | EPOLLEXCLUSIVE, 7);
	int fds[300];
	for (int i = 0; i < 300; i++) {
		fds[i] = eventfd(0, EFD_NONBLOCK);
		CHECK(fds[i] >= 0, "eventfd %d", i);
		add(many, fds[i], EPOLLIN, 1000 + i);
	}
	struct pollfd p = {fired, POLLIN, 0};
	CHECK(poll(&p, 1, 5000) == 1, "poll");
	ready();
	CHECK(read(full, &v, 8) == 8 && v == 0xfffffffffffffffe, "full: %llx", (unsigned long long)v);
	CHECK(read(sem, &v, 8) == 8 && v == 1 && read(sem, &v, 8) == 8 && v == 1 && (fcntl(sem, F_GETFD) & FD_CLOEXEC), "semaphore");
	CHECK(read(fired, &v, 8) == 8 && v == 1 && left(fired) == 0, "fired timer");
	CHECK(read(ticking, &v, 8) == 8 && v > 1, "ticking timer: %llu", (unsigned long long)v);
	struct itimerspec tick;
	p.fd = ticking; /* what is left of a millisecond may be nothing at any time, but it goes on */
	CHECK(!timerfd_gettime(ticking, &tick) && tick.it_interval.tv_nsec == 1000000 && !tick.it_interval.tv_sec, "interval");
	CHECK(poll(&p, 1, 5000) == 1 && read(ticking, &v, 8) == 8, "ticking timer goes on");
	CHECK(left(unset) == 0 && !timerfd_gettime(unset, &tick) && tick.it_interval.tv_sec == 3, "interval of a timer that is not set");
	CHECK(left(idle) == 0 && !(fcntl(idle, F_GETFL) & O_NONBLOCK), "idle timer");
	CHECK(left(rel) > 400 && left(rel) <= 500 && left(abs_) > 800 && left(abs_) <= 900 && left(mono) > 200 && left(mono) <= 300, "timers");
	CHECK((alarm_ < 0 || (left(alarm_) > 600 && left(alarm_) <= 700)) && (ralarm < 0 || (left(ralarm) > 700 && left(ralarm) <= 800)), "alarms");
	CHECK(read(rel, &v, 8) == -1 && errno == EAGAIN, "timer that has not fired");
	CHECK(once(inner) == 1 && once(outer) == 2 && once(top) == 3 && once(top) == 0, "nested");
	CHECK(once(edge) == 0, "edge before");
	v = 1;
	CHECK(write(quiet, &v, 8) == 8 && once(edge) == 4 && once(edge) == 0, "edge");
	CHECK(once(shot) == 0 && write(shot2, &v, 8) == 8 && once(shot) == 6 && once(shot) == 0, "one shot after");
	struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0x800000008ull};
	CHECK(!epoll_ctl(shot, EPOLL_CTL_MOD, loud, &e) && once(shot) == 8, "armed again");
	CHECK(once(excl) == 7, "exclusive");
	CHECK(epoll_ctl(excl, EPOLL_CTL_MOD, loud, &e) && errno == EINVAL, "not exclusive any more");
	CHECK(write(fds[123], &v, 8) == 8 && once(many) == 1123, "many");
	pass();
}
