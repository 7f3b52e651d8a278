/* Seccomp: filters that a process and its child have stacked, one that kills for the calls of a tracer's stub, one of a
 * thread alone, with and without no_new_privs. */
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

static int error_of(long nr)
{
	errno = 0;
	syscall(nr, -1, 0, 0, 0);
	return errno;
}

static pthread_barrier_t up, go;
static int thread_ok;
static void *thread(void *arg)
{
	(void)arg;
	install(0, SYS_times, SECCOMP_RET_ERRNO | 71);
	pthread_barrier_wait(&up);
	pthread_barrier_wait(&go);
	thread_ok = error_of(SYS_times) == 71 && error_of(SYS_getpriority) == 72;
	return NULL;
}

int main(void)
{
	/* With privileges and without no_new_privs. */
	CHECK(!install(SECCOMP_FILTER_FLAG_LOG, SYS_getpriority, SECCOMP_RET_ERRNO | 72), "first filter");
	int ps[2], pw[2];
	CHECK(!pipe(ps) && !pipe(pw), "pipe");
	pid_t c = fork();
	if (!c) {
		char b;
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		int bad = install(SECCOMP_FILTER_FLAG_SPEC_ALLOW, SYS_sched_yield, SECCOMP_RET_ERRNO | 73);
		CHECK(write(ps[1], "x", 1) == 1 && read(pw[0], &b, 1) == 1, "child");
		bad |= prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1 || error_of(SYS_getpriority) != 72;
		bad |= error_of(SYS_sched_yield) != 73;
		_exit(bad ? 9 : 33);
	}
	pthread_barrier_init(&up, NULL, 2);
	pthread_barrier_init(&go, NULL, 2);
	pthread_t t;
	CHECK(!pthread_create(&t, NULL, thread, NULL), "thread");
	char b;
	CHECK(read(ps[0], &b, 1) == 1, "read");
	pthread_barrier_wait(&up);
	/* What a stub makes use of is deadly here. */
	CHECK(!install(0, SYS_socketpair, SECCOMP_RET_KILL_PROCESS) && !install(0, SYS_recvfrom, SECCOMP_RET_KILL_PROCESS) &&
	      !install(0, SYS_sendto, SECCOMP_RET_KILL_PROCESS) && !install(0, SYS_prlimit64, SECCOMP_RET_KILL_PROCESS) &&
	      !install(0, SYS_setitimer, SECCOMP_RET_KILL_PROCESS), "deadly filters");
	ready();
	CHECK(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0, "no_new_privs");
	CHECK(error_of(SYS_getpriority) == 72, "the first filter is gone");
	CHECK(error_of(SYS_times) != 71, "the thread's filter is everybody's");
	CHECK(error_of(SYS_sched_yield) == 0, "the child's filter is everybody's");
	pthread_barrier_wait(&go);
	CHECK(!pthread_join(t, NULL) && thread_ok, "the thread's filter is gone");
	int st;
	CHECK(write(pw[1], "x", 1) == 1 && waitpid(c, &st, 0) == c && WEXITSTATUS(st) == 33, "the child: %x", st);
	pid_t d = fork();
	if (!d) {
		syscall(SYS_sendto, -1, 0, 0, 0);
		_exit(1);
	}
	CHECK(waitpid(d, &st, 0) == d && WIFSIGNALED(st) && WTERMSIG(st) == SIGSYS, "the deadly filter: %x", st);
	pass();
}
