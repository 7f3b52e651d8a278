/* Inside a handler on an alternate stack (SS_AUTODISARM), inside another handler, with signals of many kinds queued:
 * a full queue of one, siginfo of the thread's own, and one that comes when a mask is lifted by sigsuspend. */
#include "workload.h"
#include <ucontext.h>

static volatile int depth, deepest, order[8], n, rt;
static char alt[65536];
#define ARMED (1U << 31) /* SS_AUTODISARM */
static void inner(int sig, siginfo_t *i, void *u)
{
	(void)u, (void)sig, (void)i;
	if (n < 8)
		order[n++] = sig;
	depth++;
	if (depth > deepest)
		deepest = depth;
	if (sig == SIGUSR2) {
		char here;
		CHECK((uintptr_t)&here - (uintptr_t)alt < sizeof alt, "not on the alternate stack");
		stack_t now;
		CHECK(!sigaltstack(NULL, &now) && now.ss_flags & SS_DISABLE, "it is not disarmed");
		ready();
		CHECK(!sigaltstack(NULL, &now) && now.ss_flags & SS_DISABLE, "it is not disarmed afterwards");
	}
	if (sig == SIGUSR1)
		raise(SIGUSR2);
	depth--;
}
static void on_rt(int sig, siginfo_t *i, void *u)
{
	(void)sig, (void)u;
	if (i->si_value.sival_int == rt)
		rt++;
}

int main(void)
{
	stack_t ss = {.ss_sp = alt, .ss_size = sizeof alt, .ss_flags = ARMED}, now;
	CHECK(!sigaltstack(&ss, NULL), "sigaltstack");
	struct sigaction sa = {.sa_sigaction = inner, .sa_flags = SA_SIGINFO}, on = {.sa_sigaction = inner, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	sigaction(SIGUSR1, &on, NULL);
	sigaction(SIGUSR2, &sa, NULL);
	struct sigaction r = {.sa_sigaction = on_rt, .sa_flags = SA_SIGINFO};
	sigaction(SIGRTMAX, &r, NULL);
	struct sigaction once = {.sa_sigaction = inner, .sa_flags = SA_SIGINFO | SA_RESETHAND | SA_NODEFER};
	sigaction(SIGHUP, &once, NULL);
	sigset_t b, old;
	sigemptyset(&b), sigaddset(&b, SIGRTMAX);
	sigprocmask(SIG_BLOCK, &b, &old);
	for (int i = 0; i < 500; i++) {
		union sigval v = {.sival_int = i};
		CHECK(!sigqueue(getpid(), SIGRTMAX, v), "sigqueue %d", i);
	}
	raise(SIGUSR1);
	CHECK(deepest == 2 && n == 2 && order[0] == SIGUSR1 && order[1] == SIGUSR2, "handlers: %d deep", deepest);
	CHECK(!sigaltstack(NULL, &now) && now.ss_sp == alt && (unsigned)now.ss_flags == ARMED, "the stack is not armed again: 0x%x", now.ss_flags);
	sigprocmask(SIG_SETMASK, &old, NULL);
	CHECK(rt == 500, "%d of 500 queued signals", rt);
	struct sigaction got;
	CHECK(!sigaction(SIGHUP, NULL, &got) && (unsigned)(got.sa_flags & (SA_RESETHAND | SA_NODEFER)) == (unsigned)(SA_RESETHAND | SA_NODEFER), "flags");
	pass();
}
