/* epoll with an eventfd, a pipe, a timerfd, a signalfd and a socket pair as targets; data words and one-shot state. */
#include "workload.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

int main(void)
{
	int ep = epoll_create1(EPOLL_CLOEXEC), ev = eventfd(5, EFD_SEMAPHORE | EFD_NONBLOCK), p[2], sv[2];
	CHECK(!pipe(p) && !socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv), "pipe, socketpair");
	sigset_t s;
	sigemptyset(&s);
	sigaddset(&s, SIGUSR2);
	sigprocmask(SIG_BLOCK, &s, NULL);
	int sg = signalfd(-1, &s, SFD_NONBLOCK), tf = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
	int fds[] = {ev, p[0], sv[0], sg, tf};
	for (int i = 0; i < 5; i++) {
		struct epoll_event e = {.events = EPOLLIN | (i == 2 ? EPOLLET : 0), .data.u64 = 0xabc0000000000000 + i};
		CHECK(!epoll_ctl(ep, EPOLL_CTL_ADD, fds[i], &e), "epoll_ctl %d", i);
	}
	CHECK(write(sv[1], "hello", 5) == 5 && write(sv[0], "back", 4) == 4, "socket pair");
	kill(getpid(), SIGUSR2);
	struct { uint32_t usecs; uint16_t budget; uint8_t prefer, pad; } busy = {100, 8, 1, 0}, now_busy = {0};
	int polls = !ioctl(ep, _IOW(0x8a, 1, uint64_t), &busy); /* EPIOCSPARAMS, Linux 6.9 */
	ready();
	CHECK(!polls || (!ioctl(ep, _IOR(0x8a, 2, uint64_t), &now_busy) && !memcmp(&busy, &now_busy, 8)), "busy polling: %u, %u", now_busy.usecs, now_busy.budget);
	struct epoll_event got[8];
	int n = epoll_wait(ep, got, 8, 1000), seen = 0;
	for (int i = 0; i < n; i++) {
		CHECK(got[i].data.u64 >> 52 == 0xabc, "data %lx", (long)got[i].data.u64);
		seen |= 1 << (got[i].data.u64 & 7);
	}
	CHECK(seen == 1 + 4 + 8, "ready: %x, want d", seen);
	uint64_t v;
	for (int i = 0; i < 5; i++)
		CHECK(read(ev, &v, 8) == 8 && v == 1, "semaphore read %d", i);
	CHECK(read(ev, &v, 8) == -1 && errno == EAGAIN, "eventfd is not empty");
	char b[16];
	CHECK(read(sv[0], b, 16) == 5 && !memcmp(b, "hello", 5) && read(sv[1], b, 16) == 4 && !memcmp(b, "back", 4), "queues of the socket pair");
	struct signalfd_siginfo si;
	CHECK(read(sg, &si, sizeof si) == sizeof si && si.ssi_signo == SIGUSR2, "signalfd");
	CHECK(write(p[1], "x", 1) == 1 && epoll_wait(ep, got, 8, 1000) == 1 && (got[0].data.u64 & 7) == 1, "pipe after");
	struct itimerspec t = {.it_value = {0, 1000000}};
	CHECK(read(p[0], b, 1) == 1 && !timerfd_settime(tf, 0, &t, NULL) && epoll_wait(ep, got, 8, 1000) == 1 && (got[0].data.u64 & 7) == 4, "timerfd after");
	pass();
}
