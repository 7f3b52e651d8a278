/* What processes share by clone(2): a descriptor table with a child and a grandchild, directories and umask, memory and
 * signal handlers; and a thread with directories of its own. */
#include "workload.h"
#include <pthread.h>
#include <sched.h>

static int up[2], go[2], ok[2];
static volatile int handled;
static void on_usr1(int sig) { (void)sig; handled++; }
static void on_usr2(int sig) { (void)sig; handled += 100; }

static void sign(int fd) { CHECK(write(fd, "x", 1) == 1, "write"); }
static void await(int fd) { char b; CHECK(read(fd, &b, 1) == 1, "read"); }

static int files_child(void *arg)
{
	if (arg) {
		pid_t g = fork(); /* one between with a table of its own */
		if (!g) {
			sign(up[1]);
			await(go[0]);
			_exit(fcntl(200, F_GETFD) == -1 ? 5 : 6);
		}
		static char stack[16384];
		pid_t c = clone(files_child, stack + sizeof stack, CLONE_FILES | SIGCHLD, NULL);
		sign(up[1]);
		await(go[0]);
		int st, st2;
		waitpid(g, &st, 0), waitpid(c, &st2, 0);
		return WEXITSTATUS(st) == 5 && WEXITSTATUS(st2) == 4 ? 3 : 9;
	}
	sign(up[1]);
	await(go[0]);
	return dup2(0, 201) == 201 ? 4 : 9;
}

static int fs_child(void *arg)
{
	(void)arg;
	sign(up[1]);
	await(go[0]);
	umask(0123);
	return chdir("/proc") ? 9 : 3;
}

static volatile int common = 1, wake;
static int vm_child(void *arg)
{
	(void)arg;
	sign(up[1]);
	while (!wake)
		syscall(SYS_nanosleep, &(struct timespec){0, 2000000}, NULL);
	common = 77;
	signal(SIGUSR1, on_usr2);
	return 3;
}

static pthread_barrier_t bar;
static int thread_ok;
static void *thread(void *arg)
{
	(void)arg;
	char cwd[256];
	CHECK(!unshare(CLONE_FS) && !chdir("/usr"), "unshare");
	umask(0111);
	pthread_barrier_wait(&bar);
	pthread_barrier_wait(&bar);
	thread_ok = getcwd(cwd, sizeof cwd) && !strcmp(cwd, "/usr") && umask(0) == 0111;
	return NULL;
}

int main(void)
{
	static char s1[65536], s2[65536], s3[65536];
	umask(027);
	CHECK(!pipe(up) && !pipe(go) && !pipe(ok), "pipe");
	signal(SIGUSR1, on_usr1);
	pid_t f = clone(files_child, s1 + sizeof s1, CLONE_FILES | SIGCHLD, (void *)1);
	pid_t d = clone(fs_child, s2 + sizeof s2, CLONE_FS | SIGCHLD, NULL);
	pid_t m = clone(vm_child, s3 + sizeof s3, CLONE_VM | CLONE_SIGHAND | CLONE_FILES | SIGCHLD, NULL);
	for (int i = 0; i < 5; i++)
		await(up[0]);
	pthread_barrier_init(&bar, NULL, 2);
	pthread_t t;
	CHECK(!pthread_create(&t, NULL, thread, NULL), "thread");
	pthread_barrier_wait(&bar);
	ready();
	int st;
	char cwd[256], own[256];
	CHECK(getcwd(own, sizeof own), "getcwd");
	pthread_barrier_wait(&bar);
	pthread_join(t, NULL);
	CHECK(thread_ok, "the directories of the thread");
	raise(SIGUSR1);
	CHECK(handled == 1, "handler");
	wake = 1;
	CHECK(waitpid(m, &st, 0) == m && WEXITSTATUS(st) == 3 && common == 77, "memory: %x, %d", st, common);
	raise(SIGUSR1);
	CHECK(handled == 101, "handlers are not shared: %d", handled);
	CHECK(dup2(0, 200) == 200, "dup2");
	for (int i = 0; i < 4; i++)
		sign(go[1]);
	CHECK(waitpid(f, &st, 0) == f && WEXITSTATUS(st) == 3, "descriptors: %x", st);
	CHECK(fcntl(201, F_GETFD) >= 0, "the table is not shared");
	CHECK(waitpid(d, &st, 0) == d && WEXITSTATUS(st) == 3, "directories: %x", st);
	CHECK(getcwd(cwd, sizeof cwd) && !strcmp(cwd, "/proc") && umask(0) == 0123, "directories are not shared: %s", cwd);
	CHECK(!chdir(own), "chdir");
	pass();
}
