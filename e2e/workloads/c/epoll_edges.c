/* Edge-triggered targets of which the program has seen the edge are not reported again, and the next edge is: an eventfd, both ends of
 * pipes, a socket pair; beside them a one-shot target that is armed, one that has fired, and a target that was not ready. Of another set
 * an edge that the program has not seen is reported. */
#include "workload.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

static void add(int set, int fd, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.fd = fd};
	CHECK(!epoll_ctl(set, EPOLL_CTL_ADD, fd, &e), "epoll_ctl %d", fd);
}

/* fires checks that only this target is ready. */
static void fires(int set, int fd)
{
	struct epoll_event got[8];
	int n = epoll_wait(set, got, 8, 1000);
	CHECK(n == 1 && got[0].data.fd == fd, "%d events, first of %d, want one of %d", n, n > 0 ? got[0].data.fd : -1, fd);
}

int main(void)
{
	int set = epoll_create1(0), other = epoll_create1(0), ev = eventfd(3, EFD_NONBLOCK), p[2], full[2], quiet[2], once[2], fired[2], sv[2];
	CHECK(!pipe(p) && !pipe(full) && !pipe(quiet) && !pipe(once) && !pipe(fired) && !socketpair(AF_UNIX, SOCK_STREAM, 0, sv), "pipes");
	CHECK(write(p[1], "x", 1) == 1 && write(sv[1], "y", 1) == 1 && write(fired[1], "z", 1) == 1, "write");
	add(set, ev, EPOLLIN | EPOLLET);
	add(set, p[0], EPOLLIN | EPOLLET);
	add(set, full[1], EPOLLOUT | EPOLLET);
	add(set, quiet[0], EPOLLIN | EPOLLET);
	add(set, sv[0], EPOLLIN | EPOLLOUT | EPOLLET);
	add(set, once[0], EPOLLIN | EPOLLONESHOT);
	add(set, fired[0], EPOLLIN | EPOLLONESHOT);
	add(other, p[0], EPOLLIN | EPOLLET);
	struct epoll_event got[8];
	CHECK(epoll_wait(set, got, 8, 0) == 5 && epoll_wait(set, got, 8, 0) == 0, "the edges of before");
	ready();
	int n = epoll_wait(set, got, 8, 0);
	CHECK(n == 0, "%d events, first of %d: it was seen already", n, got[0].data.fd);
	fires(other, p[0]);
	uint64_t one = 1;
	CHECK(write(ev, &one, 8) == 8, "write");
	fires(set, ev);
	CHECK(write(sv[1], "y", 1) == 1, "write");
	fires(set, sv[0]);
	CHECK(write(p[1], "x", 1) == 1, "write");
	fires(set, p[0]);
	CHECK(write(quiet[1], "x", 1) == 1, "write");
	fires(set, quiet[0]);
	CHECK(write(once[1], "x", 1) == 1 && write(fired[1], "x", 1) == 1, "write");
	fires(set, once[0]);
	CHECK(epoll_wait(set, got, 8, 0) == 0, "an event too many");
	pass();
}
