/* A robust mutex whose owner ends afterwards, in a child and in a thread; one whose owner has ended already. */
#include "workload.h"
#include <pthread.h>

static pthread_mutex_t *mk(void)
{
	pthread_mutex_t *m = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(m, &a);
	return m;
}

static pthread_mutex_t *by_thread;
static pthread_barrier_t bar;
static void *owner(void *arg)
{
	pthread_mutex_lock(by_thread);
	pthread_barrier_wait(&bar);
	pthread_barrier_wait(&bar);
	return arg;
}

int main(void)
{
	pthread_mutex_t *dead = mk(), *later = mk();
	by_thread = mk();
	int up[2], go[2], st;
	CHECK(!pipe(up) && !pipe(go), "pipe");
	pid_t a = fork();
	if (!a) {
		pthread_mutex_lock(dead);
		_exit(0);
	}
	CHECK(waitpid(a, &st, 0) == a, "wait");
	pid_t b = fork();
	if (!b) {
		char c;
		pthread_mutex_lock(later);
		CHECK(write(up[1], "x", 1) == 1 && read(go[0], &c, 1) == 1, "child");
		_exit(0);
	}
	char c;
	CHECK(read(up[0], &c, 1) == 1, "up");
	pthread_barrier_init(&bar, NULL, 2);
	pthread_t t;
	pthread_create(&t, NULL, owner, NULL);
	pthread_barrier_wait(&bar);
	ready();
	CHECK(pthread_mutex_lock(dead) == EOWNERDEAD, "the one that had lost its owner");
	CHECK(pthread_mutex_trylock(later) == EBUSY && pthread_mutex_trylock(by_thread) == EBUSY, "they are free");
	CHECK(write(go[1], "x", 1) == 1, "go");
	pthread_barrier_wait(&bar);
	CHECK(pthread_mutex_lock(later) == EOWNERDEAD, "the child's");
	CHECK(pthread_mutex_lock(by_thread) == EOWNERDEAD, "the thread's");
	pthread_join(t, NULL);
	CHECK(waitpid(b, &st, 0) == b, "wait");
	pass();
}
