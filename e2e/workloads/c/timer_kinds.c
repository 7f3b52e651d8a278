/* POSIX timers of all clocks and notifications: of a thread, silent, of processor time, with overruns, absolute, disarmed. */
#include "workload.h"
#include <pthread.h>

static timer_t mk(clockid_t c, int notify, int sig, int value)
{
	struct sigevent e = {.sigev_notify = notify, .sigev_signo = sig, .sigev_value.sival_int = value};
	if (notify == SIGEV_THREAD_ID)
		((int *)&e.sigev_signo)[2] = syscall(SYS_gettid);
	timer_t t;
	CHECK(!syscall(SYS_timer_create, c, &e, &t), "timer_create %d", c);
	return (timer_t)(intptr_t)(int)(intptr_t)t;
}

static void arm(timer_t t, int flags, double first, double interval)
{
	struct itimerspec i = {{interval, (interval - (long)interval) * 1e9}, {first, (first - (long)first) * 1e9}};
	CHECK(!syscall(SYS_timer_settime, t, flags, &i, NULL), "timer_settime");
}

static double left(timer_t t, double *interval)
{
	struct itimerspec i;
	CHECK(!syscall(SYS_timer_gettime, t, &i), "timer_gettime");
	if (interval)
		*interval = i.it_interval.tv_sec + i.it_interval.tv_nsec / 1e9;
	return i.it_value.tv_sec + i.it_value.tv_nsec / 1e9;
}

int main(void)
{
	sigset_t b;
	sigemptyset(&b), sigaddset(&b, SIGRTMIN + 3);
	sigprocmask(SIG_BLOCK, &b, NULL);
	const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID};
	enum { n = sizeof clocks / sizeof *clocks };
	timer_t t[n], silent, idle, over, tid;
	for (int i = 0; i < n; i++)
		t[i] = mk(clocks[i], i % 2 ? SIGEV_NONE : SIGEV_SIGNAL, SIGUSR1, i), arm(t[i], 0, 1000 + i, i);
	silent = mk(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0), arm(silent, 0, 0.05, 0.5);
	idle = mk(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR2, 7);
	over = mk(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN + 3, 11), arm(over, 0, 0.001, 0.001);
	tid = mk(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGUSR1, 12);
	struct timespec now_;
	clock_gettime(CLOCK_MONOTONIC, &now_);
	arm(tid, TIMER_ABSTIME, now_.tv_sec + 500, 0);
	usleep(50000);
	ready();
	double iv;
	for (int i = 0; i < n; i++) {
		double l = left(t[i], &iv);
		CHECK(l > 900 && l <= 1000 + i && iv == i, "timer of clock %d: %f every %f", clocks[i], l, iv);
	}
	CHECK(left(silent, &iv) <= 0.5 && iv == 0.5, "the silent one: every %f", iv);
	CHECK(left(idle, NULL) == 0, "the idle one runs");
	double l = left(tid, NULL);
	CHECK(l > 400 && l <= 500, "the thread's: %f", l);
	siginfo_t si;
	CHECK(sigwaitinfo(&b, &si) == SIGRTMIN + 3 && si.si_value.sival_int == 11 && si.si_code == SI_TIMER, "the fast one");
	CHECK(si.si_overrun >= 2, "overruns %d", si.si_overrun);
	CHECK(!syscall(SYS_timer_delete, over) && !syscall(SYS_timer_delete, idle), "timer_delete");
	pass();
}
