/* A process whose first thread has ended while others run: it keeps its id, its descriptors and its memory, and its parent
 * sees its end only when the last thread is gone. One child of it asks to be told when its maker ends, and is not told
 * again. The first of them is the root of the tree. */
#include "workload.h"
#include <dirent.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

static char state(int tid)
{
	char path[64], line[512] = "";
	snprintf(path, sizeof path, "/proc/self/task/%d/stat", tid);
	int f = open(path, O_RDONLY);
	if (f < 0 || read(f, line, sizeof line - 1) <= 0)
		return '?';
	close(f);
	return strrchr(line, ')')[2];
}

static int threads(void)
{
	int n = 0;
	DIR *d = opendir("/proc/self/task");
	for (struct dirent *e; (e = readdir(d));)
		n += e->d_name[0] != '.';
	closedir(d);
	return n;
}

static void await_end_of_leader(void)
{
	while (state(getpid()) != 'Z')
		usleep(1000);
}

static volatile int told_of_death;
static void on_usr1(int sig) { (void)sig, told_of_death++; }

static int up[2], down[2];

/* in_child runs in a second thread of the child, whose first one has ended. */
static void *in_child(void *arg)
{
	(void)arg;
	await_end_of_leader();
	prctl(PR_SET_NAME, "second");
	char c = 'r';
	if (write(up[1], &c, 1) != 1 || read(down[0], &c, 1) != 1)
		_exit(90);
	c = threads() == 2 && state(getpid()) == 'Z' ? 'g' : 'b';
	if (write(up[1], &c, 1) != 1)
		_exit(91);
	syscall(SYS_exit, 3); /* the last one, so that the status is its own */
	return NULL;
}

static char *mapped;
static int fd, other_runs;
static pid_t child, grandchild;

static void *other(void *arg)
{
	(void)arg;
	other_runs = 1;
	for (;;)
		pause();
	return NULL;
}

static void *second(void *arg)
{
	(void)arg;
	await_end_of_leader();
	char c;
	CHECK(read(up[0], &c, 1) == 1 && c == 'r', "the child");
	int me = syscall(SYS_gettid);
	prctl(PR_SET_NAME, "survivor");
	sigset_t set, old;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &set, &old);
	announce();
	int sig;
	CHECK(!sigwait(&set, &sig) && sig == SIGTERM, "sigwait");
	CHECK(state(getpid()) == 'Z', "the first thread is in state %c", state(getpid()));
	CHECK(threads() == 3 && syscall(SYS_gettid) == me, "%d threads, this is %ld, was %d", threads(), syscall(SYS_gettid), me);
	char name[32] = "", path[64];
	prctl(PR_GET_NAME, name);
	CHECK(!strcmp(name, "survivor"), "the name %s", name);
	snprintf(path, sizeof path, "/proc/%d/comm", getpid());
	int f = open(path, O_RDONLY);
	memset(name, 0, sizeof name);
	CHECK(f >= 0 && read(f, name, 31) > 0 && !strcmp(name, "leader\n"), "the name of the first thread: %s", name);
	close(f);
	CHECK(!strcmp(mapped, "here"), "memory");
	CHECK(lseek(fd, 0, SEEK_CUR) == 7, "the descriptor");
	CHECK(write(down[1], &c, 1) == 1 && read(up[0], &c, 1) == 1, "pipes");
	CHECK(c == 'g', "the first thread of the child");
	int st;
	CHECK(waitpid(child, &st, 0) == child && WIFEXITED(st) && WEXITSTATUS(st) == 3, "the child ended with 0x%x", st);
	CHECK(!kill(grandchild, SIGTERM) && waitpid(grandchild, &st, 0) == grandchild, "the other child");
	CHECK(WIFEXITED(st) && WEXITSTATUS(st) == 0, "the other child ended with 0x%x", st);
	pass();
	return NULL;
}

int main(void)
{
	pthread_t t;
	CHECK(!pipe(up) && !pipe(down), "pipe");
	child = fork();
	if (!child) {
		pthread_create(&t, NULL, in_child, NULL);
		syscall(SYS_exit, 4);
	}
	int told_pipe[2];
	CHECK(!pipe(told_pipe), "pipe");
	grandchild = fork();
	if (!grandchild) { /* hears of the end of its maker once */
		sigset_t set;
		signal(SIGUSR1, on_usr1);
		sigfillset(&set);
		sigprocmask(SIG_BLOCK, &set, NULL);
		prctl(PR_SET_PDEATHSIG, SIGUSR1);
		char c = 1;
		if (write(told_pipe[1], &c, 1) != 1)
			_exit(1);
		int sig, n = 0;
		sigemptyset(&set);
		sigaddset(&set, SIGTERM);
		sigaddset(&set, SIGUSR1);
		while (!sigwait(&set, &sig) && sig == SIGUSR1)
			n++;
		_exit(n == 1 ? 0 : 10 + n);
	}
	char c;
	CHECK(read(told_pipe[0], &c, 1) == 1, "pipe");
	mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	strcpy(mapped, "here");
	fd = open("file", O_RDWR | O_CREAT, 0600);
	CHECK(fd >= 0 && write(fd, "7 bytes", 7) == 7, "file");
	prctl(PR_SET_NAME, "leader");
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	pthread_create(&t, NULL, second, NULL);
	pthread_create(&t, NULL, other, NULL);
	pthread_exit(NULL);
}
