/* ITIMER_REAL, a POSIX timer, a timerfd; each goes on where it was. And a nanosleep in progress. */
#include "workload.h"
#include <sys/time.h>
#include <sys/timerfd.h>

static volatile int alarms, ticks;
static volatile int value;
static void on_alarm(int s) { (void)s; alarms++; }
static void on_rt(int s, siginfo_t *i, void *u) { (void)s; (void)u; ticks++; value = i->si_value.sival_int; }

int main(void)
{
	struct sigaction a = {.sa_handler = on_alarm, .sa_flags = SA_RESTART}, b = {.sa_sigaction = on_rt, .sa_flags = SA_SIGINFO | SA_RESTART};
	sigaction(SIGALRM, &a, NULL);
	sigaction(SIGRTMIN + 3, &b, NULL);
	struct itimerval it = {.it_value = {1000, 0}, .it_interval = {7, 0}};
	setitimer(ITIMER_REAL, &it, NULL);
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3, .sigev_value.sival_int = 4711};
	timer_t skip, id;
	CHECK(!timer_create(CLOCK_MONOTONIC, &ev, &skip) && !timer_create(CLOCK_MONOTONIC, &ev, &id) && !timer_delete(skip), "timer_create");
	struct itimerspec ts = {.it_value = {0, 20000000}, .it_interval = {0, 20000000}};
	CHECK(!timer_settime(id, 0, &ts, NULL), "timer_settime");
	int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
	struct itimerspec far = {.it_value = {500, 0}, .it_interval = {9, 0}};
	CHECK(!timerfd_settime(fd, 0, &far, NULL), "timerfd_settime");
	double start = now();
	ready();
	double gone = now() - start;
	CHECK(gone >= 0 && gone < 100, "the monotonic clock jumped by %f s", gone);
	struct itimerval left;
	getitimer(ITIMER_REAL, &left);
	double rest = left.it_value.tv_sec + left.it_value.tv_usec / 1e6;
	CHECK(rest < 1000.1 && rest > 990 - gone && left.it_interval.tv_sec == 7, "ITIMER_REAL has %f s left", rest);
	int before = ticks;
	for (int i = 0; i < 200 && ticks == before; i++) /* a tick ends the sleep */
		usleep(100000);
	CHECK(ticks > before, "the POSIX timer stands still");
	CHECK(value == 4711, "the POSIX timer's value is %d", value);
	struct itimerspec tl;
	CHECK(!timerfd_gettime(fd, &tl) && tl.it_interval.tv_sec == 9 && tl.it_value.tv_sec <= 500 && tl.it_value.tv_sec >= 490 - gone, "the timerfd has %ld s left", (long)tl.it_value.tv_sec);
	pass();
}
