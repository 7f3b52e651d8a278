// A program that gives itself one of everything that package task carries ("set"), or nothing of it ("plain"), or
// sleeps in one system call ("nanosleep", "poll", "futex", "epoll"). It says "ready" and then waits.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define must(x) do { if ((long)(x) == -1) { fprintf(stderr, "%s: %m\n", #x); exit(1); } } while (0)

static char stack1[65536], stack2[65536];
static int set;
static volatile int second;
static int ep; // made before the two instances of a test part

static void handler(int s, siginfo_t *i, void *c) { (void)s, (void)i, (void)c; }

static void alt_stack(char *at) {
	stack_t ss = {.ss_sp = at, .ss_size = sizeof stack1, .ss_flags = 0};
	must(sigaltstack(&ss, 0));
}

static void write_file(const char *path, const char *text) {
	int fd = open(path, O_WRONLY);
	must(fd);
	must(write(fd, text, strlen(text)));
	close(fd);
}

static void *other(void *arg) {
	(void)arg;
	if (set) {
		sigset_t m;
		sigfillset(&m); // so that the signals of the process stay pending
		sigdelset(&m, SIGWINCH);
		must(pthread_sigmask(SIG_SETMASK, &m, 0) ? -1 : 0);
		alt_stack(stack2);
		prctl(PR_SET_NAME, "second (one)");
		must(prctl(PR_SET_TIMERSLACK, 777));
	}
	second = 1;
	for (;;) pause();
}

static void timers(void) {
	struct itimerval it = {{5, 0}, {100, 0}};
	must(setitimer(ITIMER_REAL, &it, 0));
	it.it_value.tv_sec = 1000;
	must(setitimer(ITIMER_VIRTUAL, &it, 0));
	it.it_value.tv_sec = 2000;
	must(setitimer(ITIMER_PROF, &it, 0));
	for (int i = 0; i < 5; i++) {
		int id;
		struct sigevent se = {.sigev_signo = SIGRTMIN + i, .sigev_notify = SIGEV_SIGNAL};
		se.sigev_value.sival_ptr = (void *)(0x1111111111111111L * i);
		if (i == 2) se.sigev_notify = SIGEV_NONE;
		if (i == 3) se.sigev_notify = SIGEV_THREAD_ID, se._sigev_un._tid = getpid();
		clockid_t c = i == 4 ? CLOCK_PROCESS_CPUTIME_ID : i == 2 ? CLOCK_REALTIME : CLOCK_MONOTONIC;
		must(syscall(SYS_timer_create, c, &se, &id));
		struct itimerspec ts = {{7, 1}, {500 + i, 0}};
		must(syscall(SYS_timer_settime, id, 0, &ts, 0));
	}
	must(syscall(SYS_timer_delete, 0));
	must(syscall(SYS_timer_delete, 1));
}

static void signals(void) {
	struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};
	sigaddset(&sa.sa_mask, SIGTERM);
	must(sigaction(SIGUSR1, &sa, 0));
	sa.sa_handler = SIG_IGN, sa.sa_flags = 0;
	must(sigaction(SIGUSR2, &sa, 0));
	sigset_t m;
	sigemptyset(&m);
	sigaddset(&m, SIGUSR1), sigaddset(&m, SIGRTMIN + 10), sigaddset(&m, SIGALRM), sigaddset(&m, SIGUSR2);
	must(sigprocmask(SIG_SETMASK, &m, 0));
	for (int i = 0; i < 3; i++) must(sigqueue(getpid(), SIGRTMIN + 10, (union sigval){.sival_int = 100 + i}));
	must(syscall(SYS_tgkill, getpid(), getpid(), SIGUSR1));
	must(kill(getpid(), SIGUSR2));
	alt_stack(stack1);
}

static void scheduling(void) {
	struct sched_param p = {0};
	must(sched_setscheduler(0, SCHED_BATCH, &p));
	must(setpriority(PRIO_PROCESS, 0, 5));
	cpu_set_t c;
	CPU_ZERO(&c);
	CPU_SET(0, &c);
	must(sched_setaffinity(0, sizeof c, &c));
	must(syscall(SYS_ioprio_set, 1, 0, (2 << 13) | 6));
	must(prctl(PR_SET_TIMERSLACK, 12345));
}

static void credentials(void) {
	gid_t g[] = {10, 20, 30};
	for (int c = 0; c < 64; c++) // CAP_SYS_MODULE 16, CAP_SYS_TIME 25
		if (c == 16 || c == 25) must(prctl(PR_CAPBSET_DROP, c));
	must(syscall(SYS_setgroups, 3, g));
	must(syscall(SYS_setresgid, 1, 2, 3));
	must(prctl(PR_SET_KEEPCAPS, 1));
	must(syscall(SYS_setresuid, 1000, 1001, 1002));
	struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct d[2] = {{1 << 10, 1 << 10 | 1 << 0, 1 << 10}, {0, 0, 0}};
	must(syscall(SYS_capset, &h, d));
	must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, 10, 0, 0));
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	must(prctl(PR_SET_DUMPABLE, 1));
	must(prctl(PR_SET_PDEATHSIG, SIGHUP));
}

static void everything(void) {
	signals();
	timers();
	struct rlimit l = {100, 200};
	must(setrlimit(RLIMIT_NOFILE, &l));
	scheduling();
	umask(027);
	must(chdir("/tmp"));
	must(prctl(PR_SET_CHILD_SUBREAPER, 1));
	must(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0));
	must(syscall(SYS_membarrier, 1 << 4, 0, 0));
	write_file("/proc/self/oom_score_adj", "500");
	write_file("/proc/self/coredump_filter", "0x7");
	must(prctl(PR_SET_NAME, "renamed"));
	credentials();
}

// sleep_in makes one call that lasts 2 s and says how it ended and when, by the monotonic clock.
static int sleep_in(const char *mode) {
	struct timespec two = {2, 0}, rest, now;
	static int word;
	struct pollfd pfd = {-1, POLLIN, 0};
	struct epoll_event ev;
	long r = -1;
	printf("ready\n");
	fflush(stdout);
	if (!strcmp(mode, "nanosleep")) r = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &two, 0);
	if (!strcmp(mode, "nanosleep-rest")) r = syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, &two, &rest);
	if (!strcmp(mode, "poll")) r = poll(&pfd, 1, 2000);
	if (!strcmp(mode, "futex")) r = syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &two, 0, 0);
	if (!strcmp(mode, "epoll")) r = epoll_wait(ep, &ev, 1, 2000);
	int e = r == -1 ? errno : 0;
	clock_gettime(CLOCK_MONOTONIC, &now);
	printf("%ld %d %ld.%09ld\n", r, e, (long)now.tv_sec, now.tv_nsec);
	return 0;
}

static int nap(void *arg) {
	(void)arg;
	for (;;) pause();
	return 0;
}

static void *thread_nap(void *arg) {
	nap(arg);
	return 0;
}

static void *unshares(void *arg) {
	must(unshare((int)(long)arg));
	second = 1;
	for (;;) pause();
}

// refused does one thing that is not carried.
static void refused(const char *what) {
	pthread_t t;
	if (!strcmp(what, "seccomp")) {
		struct sock_filter allow = BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
		struct sock_fprog p = {1, &allow};
		must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p));
	}
	if (!strcmp(what, "files")) must(clone(nap, stack1 + sizeof stack1, CLONE_FILES | SIGCHLD, 0));
	if (!strcmp(what, "vm")) must(clone(nap, stack1 + sizeof stack1, CLONE_VM | SIGCHLD, 0));
	if (!strcmp(what, "namespace")) must(unshare(CLONE_NEWPID));
	if (!strcmp(what, "thread")) {
		must(pthread_create(&t, 0, unshares, (void *)CLONE_FS) ? -1 : 0);
		while (!second) usleep(1000);
	}
	if (!strcmp(what, "uts")) {
		pid_t p = fork();
		must(p);
		if (!p) {
			must(unshare(CLONE_NEWUTS));
			second = 1;
			write(1, "ready\n", 6);
			nap(0);
		}
		nap(0);
	}
	if (!strcmp(what, "tsc")) must(prctl(PR_SET_TSC, PR_TSC_SIGSEGV));
	if (!strcmp(what, "speculation")) must(prctl(PR_SET_SPECULATION_CTRL, PR_SPEC_STORE_BYPASS, PR_SPEC_DISABLE, 0, 0));
	if (!strcmp(what, "timers")) { // this one is carried: it expires while the process is stopped
		struct itimerval it = {{0, 0}, {1, 500000}};
		struct sigevent se = {.sigev_signo = SIGRTMIN, .sigev_notify = SIGEV_SIGNAL, .sigev_value.sival_int = 7};
		struct itimerspec ts = {{10, 0}, {1, 500000000}};
		int id;
		signal(SIGALRM, SIG_IGN);
		sigset_t m;
		sigfillset(&m);
		sigprocmask(SIG_SETMASK, &m, 0);
		must(setitimer(ITIMER_REAL, &it, 0));
		must(syscall(SYS_timer_create, CLOCK_MONOTONIC, &se, &id));
		must(syscall(SYS_timer_settime, id, 0, &ts, 0));
	}
	printf("ready\n");
	fflush(stdout);
	nap(0);
}

int main(int argc, char **argv) {
	const char *mode = argc > 1 ? argv[1] : "plain";
	if (!strcmp(mode, "sleep")) { // what to sleep in comes by stdin, so that the arguments are always the same
		char how[32];
		must(ep = epoll_create1(0));
		if (scanf("%31s", how) != 1) return 1;
		return sleep_in(how);
	}
	char what[32];
	if (scanf("%31s", what) != 1) return 1;
	if (!strcmp(mode, "refused")) refused(what);
	set = !strcmp(what, "set");
	pthread_t t;
	must(pthread_create(&t, 0, other, 0) ? -1 : 0);
	while (!second) usleep(1000);
	if (set) everything();
	printf("ready\n");
	fflush(stdout);
	for (;;) pause();
}
