/* Seccomp: filters that all threads share can be added to for all of them; one thread in strict mode. */
#include "workload.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/prctl.h>

static int install(unsigned flags, int nr, unsigned action)
{
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog p = {4, f};
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &p);
}

static pthread_barrier_t up, go;
static int seen[3];
static void *thread(void *arg)
{
	int i = (intptr_t)arg;
	pthread_barrier_wait(&up);
	pthread_barrier_wait(&go);
	errno = 0;
	syscall(SYS_getpriority, -1, 0);
	seen[i] = errno;
	errno = 0;
	syscall(SYS_times, -1);
	seen[i] = seen[i] * 100 + errno;
	return NULL;
}

int main(void)
{
	int in[2], out[2];
	CHECK(!pipe(in) && !pipe(out), "pipe");
	pid_t strict = fork();
	if (!strict) {
		char b;
		if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) || write(out[1], "u", 1) != 1 || read(in[0], &b, 1) != 1 || write(out[1], &b, 1) != 1)
			syscall(SYS_exit, 2);
		syscall(SYS_getpid);
		syscall(SYS_exit, 3);
	}
	char b;
	CHECK(read(out[0], &b, 1) == 1 && b == 'u', "strict mode");
	pthread_barrier_init(&up, NULL, 4);
	pthread_barrier_init(&go, NULL, 4);
	pthread_t t[3];
	for (intptr_t i = 0; i < 3; i++)
		CHECK(!pthread_create(&t[i], NULL, thread, (void *)i), "thread");
	pthread_barrier_wait(&up);
	CHECK(!install(SECCOMP_FILTER_FLAG_TSYNC, SYS_getpriority, SECCOMP_RET_ERRNO | 72), "tsync");
	ready();
	CHECK(!install(SECCOMP_FILTER_FLAG_TSYNC, SYS_times, SECCOMP_RET_ERRNO | 71), "tsync afterwards");
	pthread_barrier_wait(&go);
	for (int i = 0; i < 3; i++)
		CHECK(!pthread_join(t[i], NULL) && seen[i] == 7271, "thread %d: %d", i, seen[i]);
	int st;
	CHECK(write(in[1], "v", 1) == 1 && read(out[0], &b, 1) == 1 && b == 'v', "the strict one");
	CHECK(waitpid(strict, &st, 0) == strict && WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL, "strict mode is off: %x", st);
	pass();
}
