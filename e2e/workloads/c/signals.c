/* Handlers with flags, ignored and blocked signals, pending ones with their siginfo, an alternate stack. */
#include "workload.h"

static volatile int got[70];
static volatile int vals[4], nvals;
static void handler(int s, siginfo_t *i, void *u)
{
	(void)u;
	got[s]++;
	if (s == SIGRTMIN + 5 && nvals < 4)
		vals[nvals++] = i->si_value.sival_int;
}

int main(void)
{
	static char stack[32768];
	stack_t ss = {.ss_sp = stack, .ss_size = sizeof stack};
	CHECK(!sigaltstack(&ss, NULL), "sigaltstack");
	struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
	sigaddset(&sa.sa_mask, SIGUSR2);
	sigaddset(&sa.sa_mask, SIGRTMIN + 5);
	sigaction(SIGUSR1, &sa, NULL);
	sigaction(SIGRTMIN + 5, &sa, NULL);
	signal(SIGPIPE, SIG_IGN);
	sigset_t block;
	sigemptyset(&block);
	sigaddset(&block, SIGUSR1);
	sigaddset(&block, SIGRTMIN + 5);
	sigprocmask(SIG_BLOCK, &block, NULL);
	kill(getpid(), SIGUSR1);
	for (int i = 0; i < 3; i++) {
		union sigval v = {.sival_int = 100 + i};
		CHECK(!sigqueue(getpid(), SIGRTMIN + 5, v), "sigqueue");
	}
	ready();
	struct sigaction old;
	CHECK(!sigaction(SIGUSR1, NULL, &old) && old.sa_sigaction == handler && (old.sa_flags & (SA_SIGINFO | SA_ONSTACK | SA_NODEFER)) == (SA_SIGINFO | SA_ONSTACK | SA_NODEFER) && sigismember(&old.sa_mask, SIGUSR2), "the handler of SIGUSR1");
	CHECK(!sigaction(SIGPIPE, NULL, &old) && old.sa_handler == SIG_IGN, "SIGPIPE is not ignored");
	sigset_t p;
	sigpending(&p);
	CHECK(sigismember(&p, SIGUSR1) && sigismember(&p, SIGRTMIN + 5), "pending signals are gone");
	stack_t os;
	CHECK(!sigaltstack(NULL, &os) && os.ss_sp == stack && os.ss_size == sizeof stack && !(os.ss_flags & SS_DISABLE), "the alternate stack");
	sigprocmask(SIG_UNBLOCK, &block, NULL);
	CHECK(got[SIGUSR1] == 1 && got[SIGRTMIN + 5] == 3, "delivered %d and %d", got[SIGUSR1], got[SIGRTMIN + 5]);
	CHECK(vals[0] == 100 && vals[1] == 101 && vals[2] == 102, "values %d %d %d", vals[0], vals[1], vals[2]);
	pass();
}
