/* Calls in progress that are ended by others afterwards: futexes of all kinds, a busy parent's wait4 and waitid,
 * select, ppoll with a mask, sigwaitinfo, sigsuspend in a thread, an untimed poll. */
#include "workload.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/select.h>

enum { kinds = 10 };
static volatile int state[kinds], verdict[kinds]; /* state: the id of the thread */
static int priv, bits, *shared, pi, req1, req2;
static int pfd[2], sfd[2], ppfd[2];
static pid_t kids[2];

static int futex(int *w, int op, int val, void *t, int *w2, int val3) { return syscall(SYS_futex, w, op, val, t, w2, val3); }

/* wake wakes or requeues one waiter, who may be on its way back into the call. */
static void wake(int k, int *w, int op, int val, void *t, int *w2, int val3)
{
	int n;
	while (!(n = futex(w, op, val, t, w2, val3))) {
		CHECK(!verdict[k], "call %d has ended by itself: %d", k, verdict[k]);
		usleep(1000);
	}
	CHECK(n == 1, "call %d: %d waiters", k, n);
}

static volatile sig_atomic_t hit;
static void on_usr(int sig) { (void)sig; hit = 1; }

static int wait_for(int k)
{
	struct pollfd p = {pfd[0], POLLIN, 0}, pp = {ppfd[0], POLLIN, 0};
	fd_set set;
	sigset_t m;
	siginfo_t si;
	struct timespec day = {86400, 0};
	int st;
	switch (k) {
	case 0: return futex(&priv, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
	case 1: return futex(&bits, FUTEX_WAIT_BITSET_PRIVATE, 0, NULL, NULL, 0x10);
	case 2: return futex(shared, FUTEX_WAIT, 0, NULL, NULL, 0);
	case 3: return futex(&pi, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0) == 0 && (pi & FUTEX_TID_MASK) == syscall(SYS_gettid) ? 0 : -1;
	case 4: return futex(&req1, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
	case 5: return wait4(kids[0], &st, 0, NULL) == kids[0] && WEXITSTATUS(st) == 5 ? 0 : -1;
	case 6: return waitid(P_PID, kids[1], &si, WEXITED) || si.si_status != 5;
	case 7: FD_ZERO(&set); FD_SET(sfd[0], &set); return select(sfd[0] + 1, &set, NULL, NULL, NULL) == 1 ? 0 : -1;
	case 8: sigfillset(&m); return ppoll(&pp, 1, &day, &m) == 1 ? 0 : -1;
	default: return poll(&p, 1, -1) == 1 ? 0 : -1;
	}
}

static void *thread(void *arg)
{
	int k = (intptr_t)arg;
	state[k] = syscall(SYS_gettid);
	verdict[k] = wait_for(k) ? 2 : 1;
	if (k == 3)
		futex(&pi, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0);
	return NULL;
}

static pid_t child(void)
{
	pid_t pid = fork();
	if (!pid) {
		signal(SIGUSR2, SIG_DFL);
		sigset_t s;
		int sig;
		sigemptyset(&s), sigaddset(&s, SIGUSR2);
		sigprocmask(SIG_BLOCK, &s, NULL);
		sigwait(&s, &sig);
		_exit(5);
	}
	return pid;
}

int main(void)
{
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(!pipe(pfd) && !pipe(sfd) && !pipe(ppfd), "pipes");
	signal(SIGUSR1, on_usr);
	for (int i = 0; i < 2; i++)
		kids[i] = child();
	CHECK(!futex(&pi, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0), "lock_pi");
	pthread_t t[kinds];
	for (intptr_t k = 0; k < kinds; k++)
		CHECK(!pthread_create(&t[k], NULL, thread, (void *)k), "thread");
	for (int k = 0; k < kinds; k++) {
		while (!state[k])
			usleep(1000);
		await_asleep(getpid(), state[k]);
	}
	ready();
	usleep(20000);
	for (int k = 0; k < kinds; k++)
		CHECK(!verdict[k], "call %d has ended by itself: %d", k, verdict[k]);
	wake(0, &priv, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	wake(1, &bits, FUTEX_WAKE_BITSET_PRIVATE, 1, NULL, NULL, 0x10);
	wake(2, shared, FUTEX_WAKE, 1, NULL, NULL, 0);
	CHECK(!futex(&pi, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0), "unlock_pi");
	wake(4, &req1, FUTEX_CMP_REQUEUE_PRIVATE, 0, (void *)1, &req2, 0);
	wake(4, &req2, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	kill(kids[0], SIGUSR2), kill(kids[1], SIGUSR2);
	CHECK(write(pfd[1], "x", 1) == 1 && write(sfd[1], "x", 1) == 1 && write(ppfd[1], "x", 1) == 1, "write");
	for (int k = 0; k < kinds; k++)
		CHECK(!pthread_join(t[k], NULL) && verdict[k] == 1, "call %d: %d", k, verdict[k]);
	CHECK(!hit, "a signal came");
	pass();
}
