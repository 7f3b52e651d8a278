/* Threads: ids, thread-local storage, alternate stacks, masks, names, waiting on a futex and running. */
#include "workload.h"
#include <pthread.h>
#include <sys/prctl.h>

enum { n = 8 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t up;
static int go;
static __thread long mine;
static volatile int bad;

static void *thread(void *arg)
{
	long i = (long)arg;
	pid_t tid = syscall(SYS_gettid);
	char name[16], back[16] = "";
	static char stacks[n][16384];
	stack_t ss = {.ss_sp = stacks[i], .ss_size = sizeof stacks[i]}, os;
	mine = 1000 + i;
	snprintf(name, sizeof name, "worker-%ld", i);
	prctl(PR_SET_NAME, name);
	sigaltstack(&ss, NULL);
	sigset_t s, t;
	sigemptyset(&s);
	sigaddset(&s, SIGRTMIN + i);
	pthread_sigmask(SIG_BLOCK, &s, NULL);
	pthread_barrier_wait(&up);
	if (i & 1) {
		while (!__atomic_load_n(&go, __ATOMIC_ACQUIRE))
			;
	} else {
		pthread_mutex_lock(&lock);
		while (!go)
			pthread_cond_wait(&cond, &lock);
		pthread_mutex_unlock(&lock);
	}
	pthread_sigmask(SIG_BLOCK, NULL, &t);
	prctl(PR_GET_NAME, back);
	sigaltstack(NULL, &os);
	if (mine != 1000 + i || syscall(SYS_gettid) != tid || strcmp(name, back) || !sigismember(&t, SIGRTMIN + i) ||
	    sigismember(&t, SIGRTMIN + n + 1) || os.ss_sp != stacks[i] || os.ss_size != sizeof stacks[i])
		__atomic_fetch_or(&bad, 1 << i, __ATOMIC_RELAXED);
	return (void *)(i * 3);
}

int main(void)
{
	pthread_t t[n];
	sigset_t term;
	sigemptyset(&term);
	sigaddset(&term, SIGTERM); /* it is for the main thread, which is not always inside sigsuspend */
	pthread_sigmask(SIG_BLOCK, &term, NULL);
	pthread_barrier_init(&up, NULL, n + 1);
	for (long i = 0; i < n; i++)
		CHECK(!pthread_create(&t[i], NULL, thread, (void *)i), "pthread_create");
	pthread_barrier_wait(&up);
	usleep(50000);
	pthread_sigmask(SIG_UNBLOCK, &term, NULL);
	ready();
	pthread_mutex_lock(&lock);
	__atomic_store_n(&go, 1, __ATOMIC_RELEASE);
	pthread_cond_broadcast(&cond);
	pthread_mutex_unlock(&lock);
	for (long i = 0; i < n; i++) {
		void *r;
		CHECK(!pthread_join(t[i], &r) && r == (void *)(i * 3), "join %ld", i);
	}
	CHECK(!bad, "threads with a wrong state: %x", bad);
	pass();
}
