/* Cgroups: a process, its child and a thread are in different ones of a v1 hierarchy of their own, and in v2. */
#include "workload.h"
#include <pthread.h>
#include <sys/mount.h>

/* One hierarchy for all runs, which outlives them; in it a cgroup for each. */
static const char *name = "migrate-workload", *dir = "none,name=migrate-workload";
static char top[32];

static const char *at(const char *below)
{
	static __thread char path[96];
	snprintf(path, sizeof path, "%s%s", top, below);
	return path;
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	CHECK(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text) && !close(fd), "%s: %s", path, text);
}

static int in(const char *want)
{
	char text[8192], line[256];
	int fd = open("/proc/thread-self/cgroup", O_RDONLY), n = read(fd, text, sizeof text - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	snprintf(line, sizeof line, ":name=%s:%s\n", name, want);
	return strstr(text, line) != NULL;
}

static pthread_barrier_t bar;
static int thread_ok;
static pid_t tid;
static void *thread(void *arg)
{
	(void)arg;
	tid = syscall(SYS_gettid);
	put(at("/t/tasks"), "0");
	pthread_barrier_wait(&bar);
	pthread_barrier_wait(&bar);
	thread_ok = in(at("/t") + 2);
	pthread_barrier_wait(&bar);
	return NULL;
}

int main(void)
{
	snprintf(top, sizeof top, "cg/%d", getpid());
	CHECK(!mkdir("cg", 0755), "mkdir");
	if (mount("none", "cg", "cgroup", 0, dir)) {
		ready(); /* no v1 here */
		pass();
	}
	CHECK(!mkdir(top, 0755) && !mkdir(at("/b"), 0750) && !mkdir(at("/t"), 0755) && !mkdir(at("/empty"), 0755), "mkdir");
	put(at("/b/notify_on_release"), "0");
	put(at("/tasks"), "0");
	int up[2], go[2];
	CHECK(!pipe(up) && !pipe(go), "pipe");
	pid_t c = fork();
	if (!c) {
		char b;
		put(at("/b/tasks"), "0");
		CHECK(write(up[1], "x", 1) == 1 && read(go[0], &b, 1) == 1, "child");
		_exit(in(at("/b") + 2) ? 3 : 4);
	}
	char b;
	CHECK(read(up[0], &b, 1) == 1, "up");
	pthread_barrier_init(&bar, NULL, 2);
	pthread_t t;
	CHECK(!pthread_create(&t, NULL, thread, NULL), "thread");
	pthread_barrier_wait(&bar);
	CHECK(!umount2("cg", MNT_DETACH), "umount");
	ready();
	int here = in(top + 2), st;
	pthread_barrier_wait(&bar);
	pthread_barrier_wait(&bar);
	CHECK(write(go[1], "x", 1) == 1 && waitpid(c, &st, 0) == c, "child");
	pthread_join(t, NULL);
	char task[64];
	snprintf(task, sizeof task, "/proc/self/task/%d", tid);
	while (!access(task, F_OK)) /* it leaves its cgroup after it has been joined */
		usleep(500);
	CHECK(!mount("none", "cg", "cgroup", 0, dir), "mount");
	put("cg/tasks", "0");
	int left = rmdir(at("/empty")) | rmdir(at("/b")) | rmdir(at("/t")) | rmdir(top);
	umount2("cg", MNT_DETACH);
	CHECK(here, "the process is elsewhere");
	CHECK(thread_ok, "the thread is elsewhere");
	CHECK(WEXITSTATUS(st) == 3, "the child is elsewhere: %x", st);
	CHECK(!left, "cgroups are gone");
	pass();
}
