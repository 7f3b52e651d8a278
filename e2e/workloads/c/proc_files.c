/* Files of /proc and namespaces: of the process, of one that has ended, of the system, directories with their place; handles of
 * the tree's own namespaces. */
#include "workload.h"
#include <dirent.h>

static int at(const char *fmt, int pid, const char *rest, int flags)
{
	char name[128];
	snprintf(name, sizeof name, fmt, pid, rest);
	int fd = open(name, flags);
	CHECK(fd >= 0, "%s", name);
	return fd;
}

int main(void)
{
	pid_t dead = fork();
	if (!dead) {
		pause();
		_exit(0);
	}
	pid_t child = fork();
	if (!child) {
		int own = open("/proc/self/status", O_RDONLY), net = open("/proc/self/ns/net", O_RDONLY), parents = at("/proc/%d/%s", getppid(), "status", O_RDONLY);
		sigset_t s;
		int sig;
		sigemptyset(&s);
		sigaddset(&s, SIGUSR1);
		sigprocmask(SIG_BLOCK, &s, NULL);
		put_file("child", "up");
		sigwait(&s, &sig);
		char b[4096] = "", want[64];
		snprintf(want, sizeof want, "\nPid:\t%d\n", getpid());
		ssize_t n = read(own, b, sizeof b - 1);
		struct stat x, y;
		if (n <= 0 || !strstr(b, want))
			_exit(8);
		memset(b, 0, sizeof b);
		snprintf(want, sizeof want, "\nPid:\t%d\n", getppid());
		if (read(parents, b, sizeof b - 1) <= 0 || !strstr(b, want))
			_exit(9);
		_exit(!fstat(net, &x) && !stat("/proc/self/ns/net", &y) && x.st_ino == y.st_ino ? 7 : 10);
	}
	while (access("child", F_OK))
		usleep(1000);
	int d1 = at("/proc/%d/%s", dead, "", O_RDONLY | O_DIRECTORY), d2 = at("/proc/%d/%s", dead, "status", O_RDONLY), d3 = at("/proc/%d/task/%s", dead, "", O_RDONLY);
	int d4 = at("/proc/%d/%s", dead, "fd", O_PATH), d5 = at("/proc/%d/%s", dead, "ns/uts", O_RDONLY);
	kill(dead, SIGKILL);
	CHECK(waitpid(dead, NULL, 0) == dead, "waitpid");
	int stat_ = open("/proc/self/stat", O_RDONLY), maps = open("/proc/self/maps", O_RDONLY), mem = open("/proc/self/mem", O_RDWR), kids = at("/proc/%d/%s", child, "stat", O_RDONLY);
	int sys = open("/proc/sys/kernel/ostype", O_RDONLY), up = open("/proc/uptime", O_RDONLY), cls = open("/sys/class", O_RDONLY | O_DIRECTORY), me = open("/proc/self", O_PATH | O_NOFOLLOW);
	int fddir = open("/proc/self/fd", O_RDONLY | O_DIRECTORY), top = open("/proc", O_RDONLY | O_DIRECTORY), task = open("/proc/thread-self/status", O_RDONLY);
	const char *names[] = {"uts", "net", "ipc", "mnt", "pid", "user", "cgroup", "pid_for_children", "time", "time_for_children"};
	int ns[10];
	ino_t inos[10];
	struct stat st, now;
	for (int i = 0; i < 10; i++) {
		ns[i] = at("/proc/%d/ns/%s", getpid(), names[i], i % 2 ? O_RDONLY : O_RDONLY | O_CLOEXEC);
		CHECK(!fstat(ns[i], &st), "fstat");
		inos[i] = st.st_ino;
	}
	char b[8192];
	CHECK(read(sys, b, 3) == 3, "part of a file");
	CHECK(stat_ >= 0 && maps >= 0 && mem >= 0 && kids >= 0 && up >= 0 && cls >= 0 && me >= 0 && fddir >= 0 && top >= 0 && task >= 0, "open");
	static volatile int cell = 4711;
	ready();
	CHECK(read(d2, b, sizeof b) == -1 && errno == ESRCH, "status of the dead");
	CHECK(openat(d1, "status", O_RDONLY) == -1 && (errno == ENOENT || errno == ESRCH), "directory of the dead");
	CHECK(openat(d3, "1", O_RDONLY) == -1 && openat(d4, "0", O_RDONLY) == -1, "tasks and descriptors of the dead");
	CHECK(!fstat(d5, &st) && st.st_ino == inos[0], "namespace handle of the dead");
	memset(b, 0, sizeof b);
	CHECK(read(stat_, b, sizeof b - 1) > 0 && atoi(b) == getpid(), "stat");
	memset(b, 0, sizeof b);
	CHECK(read(kids, b, sizeof b - 1) > 0 && atoi(b) == child, "stat of the child");
	CHECK(read(maps, b, sizeof b - 1) > 0 && read(task, b, sizeof b - 1) > 0 && read(up, b, sizeof b - 1) > 0, "texts");
	int v = 0;
	CHECK(pread(mem, &v, sizeof v, (off_t)(intptr_t)&cell) == sizeof v && v == 4711, "mem");
	v = 12;
	CHECK(pwrite(mem, &v, sizeof v, (off_t)(intptr_t)&cell) == sizeof v && cell == 12, "mem, writing");
	CHECK(lseek(sys, 0, SEEK_CUR) == 3 && read(sys, b, 2) == 2 && !memcmp(b, "ux", 2), "offset");
	CHECK(!fstat(me, &st) && S_ISLNK(st.st_mode) && !faccessat(cls, "net", F_OK, 0), "link and /sys");
	for (int i = 0; i < 10; i++) {
		CHECK(!fstat(ns[i], &st), "fstat");
		char name[64];
		snprintf(name, sizeof name, "/proc/self/ns/%s", names[i]);
		CHECK(!stat(name, &now) && st.st_ino == now.st_ino, "namespace %s", names[i]);
		CHECK(st.st_ino == inos[i] || i >= 8, "namespace %s is another one", names[i]);
		CHECK((fcntl(ns[i], F_GETFD) & FD_CLOEXEC) == (i % 2 ? 0 : FD_CLOEXEC), "FD_CLOEXEC");
	}
	CHECK(!kill(child, SIGUSR1) && waitpid(child, &v, 0) == child && WEXITSTATUS(v) == 7, "child: status %x", v);
	pass();
}
