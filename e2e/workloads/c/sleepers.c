/* Calls in progress restart and end at their time: nanosleep, poll, epoll_wait, futex, read, sigtimedwait. */
#include "workload.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>

static const char *names[] = {"nanosleep", "clock_nanosleep", "poll", "epoll_wait", "futex", "read", "sigtimedwait"};
enum { kinds = 7 };

static int sleeper(int kind, int fd, double seconds)
{
	struct timespec t = {seconds, 0}, abs;
	struct pollfd p = {-1, POLLIN, 0};
	struct epoll_event e;
	sigset_t s;
	char b;
	int word = 0;
	switch (kind) {
	case 0: return nanosleep(&t, NULL);
	case 1: clock_gettime(CLOCK_MONOTONIC, &abs); abs.tv_sec += seconds; return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &abs, NULL);
	case 2: return poll(&p, 1, seconds * 1000);
	case 3: return epoll_wait(epoll_create1(0), &e, 1, seconds * 1000);
	case 4: return syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &t, NULL, 0) == -1 && errno == ETIMEDOUT ? 0 : 1;
	case 5: return read(fd, &b, 1) == 1 ? 0 : 1;
	}
	sigemptyset(&s);
	sigaddset(&s, SIGUSR1);
	sigprocmask(SIG_BLOCK, &s, NULL);
	return sigtimedwait(&s, NULL, &t) == -1 && errno == EAGAIN ? 0 : 1;
}

int main(void)
{
	pid_t c[kinds];
	int p[2];
	CHECK(!pipe(p), "pipe");
	double start = now();
	for (int i = 0; i < kinds; i++)
		if (!(c[i] = fork())) {
			double t = now();
			int r = sleeper(i, p[0], 2);
			double took = now() - t;
			if (r)
				_exit(50);
			_exit(i == 5 || (took > 1.99 && took < 60) ? 0 : 51);
		}
	usleep(200000);
	ready();
	CHECK(write(p[1], "x", 1) == 1, "write");
	for (int i = 0; i < kinds; i++) {
		int st;
		CHECK(waitpid(c[i], &st, 0) == c[i] && WIFEXITED(st) && WEXITSTATUS(st) == 0, "%s ended with status %x after %f s", names[i], st, now() - start);
	}
	pass();
}
